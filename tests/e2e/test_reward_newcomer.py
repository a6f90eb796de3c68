"""services/reward/README.md: from pip to a scored text in five commands; these, in a clean environment."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.rules import make_rule

ROOT = Path(__file__).parents[2]
# What a release's source holds, and no more.
CHECKOUT = ("LICENSE", "README.md", "orchestrator", "protos", "pyproject.toml", "services")
BLOCK = re.compile(r"<!-- five commands -->\s*```(?:sh|bash)?\n(.*?)```\s*<!-- /five commands -->", re.DOTALL)

pytestmark = [pytest.mark.newcomer, pytest.mark.timeout(1800)]


def commands() -> list[str]:
    """The README's block, a command to each unbroken line."""
    found = BLOCK.search((ROOT / "services" / "reward" / "README.md").read_text(encoding="utf-8"))
    assert found, "the README has no block of five commands"
    return found[1].replace("\\\n", "").strip().splitlines()


def test_there_are_five() -> None:
    """Five commands, the first of which installs, and one of which makes a key."""
    listed = commands()
    assert len(listed) == 5
    assert listed[0].startswith("pip install") and "[reward]" in listed[0]
    assert any("services.common.access new" in each for each in listed)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, for the commands write beside them."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
            )
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An empty virtual environment, activated. Of this one nothing is seen but pip's cache and our pins."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRIMTAB"))}
    return {
        **kept,
        "VIRTUAL_ENV": str(folder),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_QUIET": "1",
    }


@pytest.fixture
def group() -> Iterator[list[int]]:
    """Process groups that end with the test."""
    started: list[int] = []
    yield started
    for number in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)


def test_five_commands_score_a_text(
    checkout: Path, environment: dict[str, str], group: list[int], tmp_path: Path
) -> None:
    """As one script in an empty environment they print the score; another key is refused; no Kubernetes came along."""
    script = tmp_path / "five.sh"
    script.write_text("set -e\n" + "\n".join(commands()) + "\n", encoding="utf-8")
    out, err = tmp_path / "out", tmp_path / "err"
    # To files: the service that the script leaves behind would hold a pipe open.
    with out.open("wb") as stdout, err.open("wb") as stderr:
        ran = subprocess.Popen(
            ["bash", str(script)],
            cwd=checkout,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        group.append(ran.pid)
        code = ran.wait(1700)
    assert code == 0, err.read_text()[-3000:]
    [value] = ast.literal_eval(out.read_text().strip().splitlines()[-1])
    expected = make_rule("sentiment").score("How are you?", "Wonderful, thank you!", {})
    assert value == pytest.approx(expected)

    def python(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )

    wrong = python(
        "from trimtab import RewardClient\n"
        "RewardClient('127.0.0.1:50053', key='wrong').values(['How are you?'], ['Fine'])"
    )
    assert "UnauthenticatedError" in wrong.stderr
    spare = python(
        "import importlib.util as u; print(u.find_spec('kubernetes'), u.find_spec('torch') is not None)"
    )
    assert spare.stdout.split() == ["None", "True"]
    assert sys.prefix not in python("import services; print(services.__file__)").stdout
