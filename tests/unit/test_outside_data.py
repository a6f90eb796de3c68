"""What comes from outside is never run: the source is read call by call; each rule finds what it forbids."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("services", "orchestrator", "protos/trimtab")
# Unpickling, or another way to run what one reads.
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
# A module that may be imported for these names alone.
NAMED = {"services/learner/checkpoints.py": {"pickle.UnpicklingError"}}
# Of transformers: read no weights.
WEIGHTLESS = {"AutoTokenizer", "AutoConfig", "GenerationConfig"}


def findings(tree: ast.Module, named: frozenset[str] | set[str] = frozenset()) -> Iterator[str]:
    """What the rules forbid, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            )
            for name in {one.partition(".")[0] for one in names} & MODULES:
                if not any(one.startswith(f"{name}.") for one in named):
                    yield f"{line}: imports {name}"
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES
        ):
            if ast.unparse(node) not in named:
                yield f"{line}: uses {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            yield from (f"{line}: {what}" for what in _call(ast.unparse(node.func), node))


def _call(function: str, node: ast.Call) -> Iterator[str]:
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    last = function.rpartition(".")[2]
    if function == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    if given.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    # Called here, or handed on to be called with what follows it.
    loaders = [one for one in (function, *map(ast.unparse, node.args)) if one.endswith(".from_pretrained")]
    loads = any(one.partition(".")[0] not in WEIGHTLESS for one in loaders)
    if loads and given.get("use_safetensors") != "True" and "gguf_file" not in given:
        yield "weights that need not be safetensors"
    if function in {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}:
        yield function
    if last in {"extractall", "unpack_archive"}:
        yield f"{last}: an archive could write elsewhere"
    if given.get("shell", "False") != "False":
        yield "a shell"


def test_nothing_that_is_read_is_run() -> None:
    """No pickle, remote code, unsafe YAML, eval, shell or archive unpacking anywhere in what is shipped."""
    found = []
    for path in (path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))):
        name = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{name}:{what}" for what in findings(tree, NAMED.get(name, frozenset()))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "import cloudpickle as c",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(path)",
        "run_loader(folder, loader.from_pretrained, revision=revision)",
        "eval(text)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_each_rule_finds_what_it_forbids(code: str) -> None:
    """A line of each kind is one finding."""
    assert len(list(findings(ast.parse(code)))) == 1


def test_a_named_use_is_not_all_uses() -> None:
    """Where an exception's name is allowed, loading is not."""
    code = ast.parse("import pickle\ntry: f()\nexcept pickle.UnpicklingError: pickle.loads(b)")
    assert list(findings(code, {"pickle.UnpicklingError"})) == ["3: uses pickle.loads"]
