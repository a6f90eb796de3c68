"""The examples of protos/examples against a real reward service, with a key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.reward_process import RewardProcess
from trimtab import RewardClient

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "protos" / "examples"
MODULES = ROOT / ".venv-peers" / "node" / "node_modules"
GRPCURL = ROOT / ".venv-peers" / "grpcurl" / "bin"
PAIRS = [
    ("How are you?", "Wonderful, thank you!"),
    ("How are you?", "Terrible, and that is your fault."),
]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A key, and the file that has its hash."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = subprocess.run(
        [sys.executable, "-m", "services.common.access", "new", "example", "--file", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip(), file


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, key: tuple[str, Path]) -> Iterator[RewardProcess]:
    """A sentiment rule behind gRPC and HTTP."""
    process = RewardProcess(
        tmp_path_factory.mktemp("service"),
        f"""
        [access]
        keys_file = "{key[1]}"
        [[models]]
        name = "mood"
        rule = "sentiment"
        """,
        key=key[0],
    )
    process.start()
    yield process
    process.stop()


@pytest.fixture
def expected(service: RewardProcess, key: tuple[str, Path]) -> list[float]:
    """What our own client gets."""
    prompts, answers = zip(*PAIRS, strict=True)
    with RewardClient(service.grpc, key=key[0]) as client:
        return client.values(prompts, answers, model="mood")


def run(command: list[str], cwd: Path, key: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "TRIMTAB_KEY": key,
            "TRIMTAB_MODEL": "mood",
            "TRIMTAB_PROTOS": str(ROOT / "protos"),
        },
    )


@pytest.fixture
def javascript(tmp_path: Path) -> Path:
    """The example beside its packages, as `npm install` leaves them."""
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    if not MODULES.is_dir():
        pytest.skip("make peer-node first")
    shutil.copy(EXAMPLES / "score.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    return tmp_path


def test_javascript_scores(
    javascript: Path, service: RewardProcess, key: tuple[str, Path], expected: list[float]
) -> None:
    """The JavaScript example gets over gRPC and over HTTP what our client gets."""
    done = run(["node", "score.mjs", service.grpc, f"http://{service.http}"], javascript, key[0])
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["grpc"] == pytest.approx(expected)
    assert got["http"] == pytest.approx(expected)


def test_javascript_says_why_not(javascript: Path, service: RewardProcess) -> None:
    """With a wrong key it ends with one line and an exit code."""
    done = run(["node", "score.mjs", service.grpc], javascript, "wrong")
    assert done.returncode == 1
    assert "UNAUTHENTICATED" in done.stderr


def test_grpcurl_scores(
    service: RewardProcess, key: tuple[str, Path], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell example lists the models and scores, by reflection alone."""
    if shutil.which("grpcurl") is None:
        if not GRPCURL.is_dir():
            pytest.skip("make peer-grpcurl first")
        monkeypatch.setenv("PATH", str(GRPCURL), prepend=os.pathsep)
    done = run(["sh", str(EXAMPLES / "grpcurl.sh"), service.grpc], EXAMPLES, key[0])
    assert done.returncode == 0, done.stderr
    listed, end = json.JSONDecoder().raw_decode(done.stdout)
    scored = json.loads(done.stdout[end:])
    assert [model["name"] for model in listed["models"]] == ["mood"]
    assert [score["value"] for score in scored["scores"]] == pytest.approx(expected)
