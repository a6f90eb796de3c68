"""Mutants of services/learner/algorithms, and which of them the numerics tests kill: `make mutants`.

A mutant is one change of one expression: a sign, an operator, a factor left out, a comparison turned round, a number
moved, a minimum made a maximum. The tests are imported and collected once; each mutant is tried in a forked child,
which puts the mutant's code into the module's own functions, wherever they have been imported to, and runs the
module's own tests first, then all others that import it, until one fails: what a test of something else would notice
does not count. No file is touched. Prints every survivor with its line, then a table.

Left out are decorators' arguments (`frozen`, `slots`), which are no formulas, and mutants that no input tells from the
original: these are listed by hand, each with its reason (EQUIVALENT). One that is merely hard to kill is a survivor.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

PACKAGE = "services.learner.algorithms"
FOLDER = Path(__file__).parents[2] / "services" / "learner" / "algorithms"
TESTS = Path(__file__).parent
SKIPPED = {"__init__", "registry"}
LIMIT_SECONDS = 60
WANTED = 0.9
SIMPLE = (bool, int, float, str, tuple)

EQUIVALENT: dict[str, str] = {
    "a2c.py: 0.0 -> 1.0": "the width of a clip that is off",
    "rloo.py: advantages - advantages.mean() -> advantages + advantages.mean()": "leave-one-out sums to 0 by itself",
    "rft.py: stable=True -> stable=False": "torch's sort on a processor is stable either way",
}
"""What a mutant is told as, and why nothing can tell it from the original."""

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.Gt,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
NAMES = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module's changed source, and in words where and what."""

    module: str
    told: str
    source: str


def mutants(path: Path) -> Iterator[Mutant]:
    """Every change of every expression of a module."""
    source = path.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    names = {id(node.value): f"{node.arg}=" for node in nodes if isinstance(node, ast.keyword)}
    decorating = {
        id(inner) for node in nodes for one in getattr(node, "decorator_list", ()) for inner in ast.walk(one)
    }
    for place, node in enumerate(nodes):
        if id(node) in decorating:
            continue
        for change in changes(node):
            tree = ast.parse(source)
            target = list(ast.walk(tree))[place]
            before, name = ast.unparse(target), names.get(id(node), "")
            changed = change(target)
            _Replace(target, changed).visit(tree)
            told = f"{path.name}:{getattr(node, 'lineno', 0)}: {name}{before} -> {name}{ast.unparse(changed)}"
            yield Mutant(path.stem, told, ast.unparse(ast.fix_missing_locations(tree)))


def changes(node: ast.AST) -> list[Callable[[Any], ast.AST]]:
    """What can be done to a node; each takes an equal node and returns another."""
    found: list[Callable[[Any], ast.AST]] = []
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        found.append(lambda one: ast.BinOp(one.left, OPERATORS[type(one.op)](), one.right))
        if isinstance(node.op, ast.Mult):
            found += [lambda one: one.left, lambda one: one.right]
    elif (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and not isinstance(node.operand, ast.Constant)
    ):
        found.append(lambda one: one.operand)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        found.append(
            lambda one: ast.Compare(
                one.left, [COMPARISONS[type(one.ops[0])](), *one.ops[1:]], one.comparators
            )
        )
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found.append(lambda one: ast.Constant(one.value + 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        found.append(lambda one: ast.Constant(not one.value))
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        found.append(lambda one: ast.Attribute(one.value, NAMES[one.attr], one.ctx))
    return found


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, changed: ast.AST) -> None:
        self._target, self._changed = target, changed

    def visit(self, node: ast.AST) -> ast.AST:
        return copy.deepcopy(self._changed) if node is self._target else super().visit(node)


def put_in(mutant: Mutant) -> None:
    """Make the imported module behave as the mutant: code and defaults of its functions, and its plain values."""
    original = importlib.import_module(f"{PACKAGE}.{mutant.module}")
    changed = ModuleType(original.__name__)
    # Dataclasses look their module up by name while they are made.
    sys.modules[original.__name__] = changed
    try:
        exec(compile(mutant.source, original.__file__ or "", "exec"), changed.__dict__)  # noqa: S102
    finally:
        sys.modules[original.__name__] = original
    _over(original, changed, original.__name__)


def _over(original: Any, changed: Any, module: str) -> None:
    for name, new in list(vars(changed).items()):
        old = vars(original).get(name)
        if isinstance(new, type) and new.__module__ == module:
            _over(old, new, module)
        elif (pair := (_function(old), _function(new))) and isinstance(pair[0], FunctionType):
            if pair[0].__module__ == module and isinstance(pair[1], FunctionType):
                pair[0].__code__ = pair[1].__code__
                pair[0].__defaults__, pair[0].__kwdefaults__ = pair[1].__defaults__, pair[1].__kwdefaults__
        elif isinstance(new, SIMPLE) and not name.startswith("__") and old != new:
            setattr(original, name, new)


def _function(value: Any) -> Any:
    """What stands behind a property, a class method or a static one."""
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


@dataclass(slots=True)
class Trial:
    """A pytest plugin that tries mutants in place of running the tests."""

    chosen: Sequence[str]
    killed: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The whole of it. Raises where the tests fail without any mutant: nothing could be said then."""
        if not self._survives(None, session.items):
            raise pytest.UsageError("the tests fail without a mutant")
        for path in sorted(FOLDER.glob("*.py")):
            if path.stem in SKIPPED or (self.chosen and path.stem not in self.chosen):
                continue
            first = own_tests(path.stem)
            near = {file for file in all_tests() if f"{PACKAGE}.{path.stem}" in Path(file).read_text()}
            items = [item for item in session.items if item.path.name in first or str(item.path) in near]
            items.sort(key=lambda item: item.path.name not in first)
            for mutant in mutants(path):
                self._try(mutant, items)
            print(f"{path.stem}: {self.killed[path.stem]} of {self.tried[path.stem]} killed", flush=True)
        return True

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item]) -> None:
        if _placeless(mutant.told) in EQUIVALENT:
            self.skipped[mutant.module] += 1
            return
        self.tried[mutant.module] += 1
        if self._survives(mutant, items):
            print(f"survives: {mutant.told}", flush=True)
        else:
            self.killed[mutant.module] += 1

    def _survives(self, mutant: Mutant | None, items: Sequence[pytest.Item]) -> bool:
        """Whether all tests pass with it, in a child of this process."""
        child = os.fork()
        if child == 0:
            _child(mutant, items)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) == 0

    def table(self) -> str:
        """One line a module, in Markdown."""
        lines = ["| module | killed | of | left out |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {self.killed[name]} | {count} | {self.skipped[name]} |"
            for name, count in self.tried.items()
        ]
        killed, tried = self.killed.total(), self.tried.total()
        share = killed / max(1, tried)
        return "\n".join([*lines, f"| all | {killed} ({share:.1%}) | {tried} | {self.skipped.total()} |"])


def _child(mutant: Mutant | None, items: Sequence[pytest.Item]) -> None:
    signal.alarm(LIMIT_SECONDS)  # an endless loop is a death too
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        if mutant is not None:
            put_in(mutant)
        for item in items:
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                os._exit(1)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _placeless(told: str) -> str:
    """Without the line's number, which every edit moves."""
    file, _, change = told.split(":", 2)
    return f"{file}:{change}"


def own_tests(module: str) -> set[str]:
    """Files of the tests that are a module's own."""
    own = {
        "a2c": "reinforce",
        "base": "losses",
        "clipping": "grpo",
        "dpo": "dpo_rft_ptx",
        "ptx": "dpo_rft_ptx",
        "rft": "dpo_rft_ptx",
        "rloo": "reinforce",
    }
    return {f"test_{own.get(module, module)}.py", "test_losses.py"}


def all_tests() -> list[str]:
    """The tests of algorithms; not the trainer's, which load a model."""
    files = [path for path in sorted(TESTS.glob("test_*.py")) if PACKAGE in path.read_text()]
    return [str(path) for path in files if "trainer" not in path.name]


def main() -> int:
    """Arguments: modules; none: all. 0 where enough are killed of every one."""
    parser = argparse.ArgumentParser(prog="python -m tests.numerics.mutants")
    parser.add_argument("modules", nargs="*")
    trial = Trial(parser.parse_args().modules)
    code = pytest.main(["-q", "--no-header", "-s", "-p", "no:schemathesis", *all_tests()], plugins=[trial])
    print(trial.table())
    weak = [name for name, count in trial.tried.items() if trial.killed[name] < WANTED * count]
    return 1 if weak or not trial.tried or code else 0


if __name__ == "__main__":
    raise SystemExit(main())
