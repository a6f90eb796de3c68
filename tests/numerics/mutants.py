"""Mutants of services/learner/algorithms, and which of them the numerics tests kill: `make mutants`.

A mutant is one change of one expression: a sign, an operator, a factor left out, a comparison turned round, a number
moved, a minimum made a maximum. Each is tried in a forked child that has torch already; the module's source is
replaced as it is imported, no file is touched. Prints every survivor with its line, then one line a module.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "services.learner.algorithms"
FOLDER = Path(__file__).parents[2] / "services" / "learner" / "algorithms"
TESTS = Path(__file__).parent
SKIPPED = {"__init__", "registry"}
LIMIT_SECONDS = 60
WANTED = 0.9

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
    for place, node in enumerate(nodes):
        for change in changes(node):
            tree = ast.parse(source)
            target = list(ast.walk(tree))[place]
            before = ast.unparse(target)
            changed = change(target)
            _Replace(target, changed).visit(tree)
            told = f"{path.name}:{getattr(node, 'lineno', 0)}: {before} -> {ast.unparse(changed)}"
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


class _Loader(importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._mutant.source, self._mutant.module, "exec"), module.__dict__)  # noqa: S102


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != f"{PACKAGE}.{self._mutant.module}":
            return None
        origin = str(FOLDER / f"{self._mutant.module}.py")
        spec = importlib.util.spec_from_loader(name, _Loader(self._mutant), origin=origin)
        assert spec is not None
        spec.has_location = True
        return spec


def survives(mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether all tests pass with it, in a child of this process."""
    child = os.fork()
    if child == 0:
        _child(mutant, tests)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _child(mutant: Mutant, tests: Sequence[str]) -> None:
    import signal

    import pytest

    signal.alarm(LIMIT_SECONDS)  # an endless loop is a death too
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.meta_path.insert(0, _Finder(mutant))
    code = 0
    try:
        for files in (tests[:1], tests[1:]):  # its own tests alone are collected quickly
            code = code or int(pytest.main(["-x", "-q", "--no-header", "-p", "no:schemathesis", *files]))
    except BaseException:
        code = 1
    os._exit(code)


def _warm() -> None:
    """Import once what every child needs, but nothing that is mutated."""
    import pytest  # noqa: F401
    import torch
    import torch._dynamo

    import services.common.spec.library  # noqa: F401

    torch.set_num_threads(1)
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


def tests_of(module: str) -> list[str]:
    """The tests that are likeliest to kill first, then all others of algorithms."""
    own = {"reinforce": "reinforce", "a2c": "reinforce", "rloo": "reinforce", "advantages": "advantages"}
    own |= {
        "dpo": "dpo_rft_ptx",
        "rft": "dpo_rft_ptx",
        "ptx": "dpo_rft_ptx",
        "clipping": "grpo",
        "base": "losses",
    }
    first = f"test_{own.get(module, module)}.py"
    names = [path.name for path in sorted(TESTS.glob("test_*.py")) if f"{PACKAGE}" in path.read_text()]
    names = [name for name in names if "trainer" not in name]
    return [str(TESTS / name) for name in sorted(names, key=lambda name: name != first)]


def main() -> int:
    """Arguments: modules; none: all. 0 where enough are killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.numerics.mutants")
    parser.add_argument("modules", nargs="*")
    chosen = parser.parse_args().modules
    _warm()
    tried, killed = 0, 0
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem in SKIPPED or (chosen and path.stem not in chosen):
            continue
        tests, total, dead = tests_of(path.stem), 0, 0
        for mutant in mutants(path):
            total += 1
            if survives(mutant, tests):
                print(f"survives: {mutant.told}", flush=True)
            else:
                dead += 1
        print(f"{path.stem}: {dead} of {total} killed", flush=True)
        tried, killed = tried + total, killed + dead
    print(f"all: {killed} of {tried} killed, {killed / max(1, tried):.1%}")
    return 0 if killed >= WANTED * tried else 1


if __name__ == "__main__":
    raise SystemExit(main())
