"""The adapters of verl and OpenRLHF, called by these trainers' own code in their own environments."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.reward_process import RewardProcess
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model
from trimtab import RewardClient

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers"
ROWS = [{"prompt": f"What is {n} + {n}?", "answer": f"It is {2 * n}, I think."} for n in range(12)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def python_of(peer: str) -> str:
    """The interpreter of a trainer's environment; the test is skipped where there is none."""
    python = PEERS / peer / "bin" / "python"
    if not (PEERS / peer / ".ready").exists():
        pytest.skip(f"make peer-{peer} first")
    return str(python)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcess]:
    """A tiny random reward model that reads text."""
    folder = tmp_path_factory.mktemp("service")
    model = make_tiny_reward_model(folder / "rm", pooling="mean")
    process = RewardProcess(
        folder, f'dtype = "float32"\nthreads = 1\n[[models]]\nname = "hh"\npath = "{model}"\n'
    )
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def expected(service: RewardProcess) -> list[float]:
    """The rows' scores, by our own client."""
    with RewardClient(service.grpc) as client:
        return client.values([row["prompt"] for row in ROWS], [row["answer"] for row in ROWS], model="hh")


def run(python: str, script: str, service: RewardProcess, folder: Path, *arguments: str) -> Any:
    """The JSON that a script printed last, with a tokenizer and the rows in files."""
    model = make_tiny_causal(folder / "policy")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    done = subprocess.run(
        [python, str(Path(__file__).with_name(script)), str(model), str(folder / "rows.json"), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TRIMTAB_TARGET": service.grpc,
            "TRIMTAB_MODEL": "hh",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_verl(tmp_path: Path, service: RewardProcess, expected: list[float]) -> None:
    """verl's managers, row by row, awaited and as a batch, get every row's own score."""
    found = run(python_of("verl"), "score_with_verl.py", service, tmp_path)
    assert sorted(found) == ["compute_score", "compute_score_async", "compute_score_batch"]
    for values in found.values():
        assert values == pytest.approx(expected, abs=1e-5)


def test_openrlhf_function(tmp_path: Path, service: RewardProcess, expected: list[float]) -> None:
    """OpenRLHF, given a file with our function, gets every row's own score."""
    file = tmp_path / "reward_func.py"
    file.write_text(
        "from trimtab.openrlhf import make_reward_func\nreward_func = make_reward_func(end_tokens=['<|end|>'])\n",
        encoding="utf-8",
    )
    found = run(python_of("openrlhf"), "score_with_openrlhf.py", service, tmp_path, str(file))
    assert found["rewards"] == pytest.approx(expected, abs=1e-5)


def test_openrlhf_url(tmp_path: Path, service: RewardProcess) -> None:
    """OpenRLHF, given the service's URL, gets what the service answers there for the text that it sends."""
    url = f"http://{service.http}/get_reward?model=hh"
    found = run(python_of("openrlhf"), "score_with_openrlhf.py", service, tmp_path, url)
    queries = [f"{row['prompt']}{row['answer']}<|end|>" for row in ROWS]
    direct = httpx.post(url, json={"query": queries, "prompts": [row["prompt"] for row in ROWS]}).json()
    assert found["rewards"] == pytest.approx(direct["rewards"], abs=1e-5)
