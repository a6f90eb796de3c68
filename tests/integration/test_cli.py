"""`trimtab` as a person uses it: mistakes are one line and exit 2, what runs can be seen and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from orchestrator.local.layout import RunLayout
from services.common.stages.base import NewEntry
from services.common.stages.redis_stages import RedisStages
from tests.fakes.queue_admin import admin_url
from tests.integration.test_supervisor import until
from trimtab.common.v1 import common_pb2 as common
from trimtab.policy.v1 import policy_pb2 as policy
from trimtab.policy.v1 import policy_pb2_grpc as policy_grpc
from trimtab.reward.v1 import reward_pb2 as reward
from trimtab.reward.v1 import reward_pb2_grpc as reward_grpc
from trimtab.rollout.v1 import rollout_pb2 as rollout

ROOT = Path(__file__).parents[2]
GOOD = 'reward_model = "rule:sentiment"\nsteps = 3\n[model]\npath = "m"\n[data]\nprompts = "p.jsonl"\n'
CLI = [sys.executable, "-m", "tests.fakes.cli"]


def trimtab(*arguments: str, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([*CLI, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The only line of an error; stdout is empty."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("trimtab: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("trimtab: ").strip()


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; whatever the test leaves up is ended."""
    folder = tmp_path / "run"
    yield folder
    pid = RunLayout(folder).supervisor_pid() if folder.exists() else None
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps = \n", "run.toml:1: steps: expected valid TOML"),
        ('steps = "many"\n' + GOOD.replace("steps = 3\n", ""), "run.toml:1: steps: expected a valid integer"),
        (GOOD + "[sampling]\ntemprature = 2\n", "run.toml:8: sampling.temprature: there is no such field"),
        (GOOD.replace('path = "m"', ""), "model.path: expected a value, none is given"),
        (GOOD.partition("\n")[2], "expected a reward model's folder, rule:<name>, or [[reward_"),
        (GOOD + "[rollout]\nslip = ['policy']\n", "rollout.slip needs at least one stage named reward"),
    ],
)
@pytest.mark.parametrize("command", ["train", "up"])
def test_wrong_spec(tmp_path: Path, command: str, text: str, told: str) -> None:
    """File, line, field and what was expected; nothing is started and no folder made."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    assert told in one_line(trimtab(command, str(path), "--out", str(tmp_path / "run")), 2)
    assert not (tmp_path / "run").exists()


def test_in_process_needs_a_score_too(run_file: Path, folder: Path) -> None:
    """A run that nothing scores is refused before a model is loaded or a folder made."""
    run_file.write_text(GOOD.replace('reward_model = "rule:sentiment"\n', ""))
    told = one_line(trimtab("train", str(run_file), "--in-process", "--out", str(folder)), 2)
    assert told.startswith("reward_model: expected a reward model's folder")
    assert not folder.exists()


def test_spec_that_is_not_there(tmp_path: Path) -> None:
    """A file that does not exist is the user's mistake."""
    assert "no such file" in one_line(trimtab("train", str(tmp_path / "no.toml")), 2)


def test_wrong_override(run_file: Path) -> None:
    """--set is checked like the file."""
    told = one_line(trimtab("train", str(run_file), "--set", "steps=few"), 2)
    assert told == "--set steps: expected a valid integer, got 'few'"
    assert "expected field=value" in one_line(trimtab("train", str(run_file), "--set", "steps"), 2)


def test_used_folder_is_refused(run_file: Path, folder: Path) -> None:
    """Without --resume or --overwrite; and a folder that is no run's is never emptied."""
    RunLayout.prepare(folder)
    told = one_line(trimtab("train", str(run_file), "--out", str(folder)), 2)
    assert told == f"{folder} is used already: --resume continues it, --overwrite empties it"
    told = one_line(trimtab("train", str(run_file), "--out", str(run_file.parent), "--overwrite"), 2)
    assert told.endswith("it is left as it is")
    assert run_file.exists()


@pytest.mark.parametrize("command", [["status"], ["logs"], ["down"], ["queue", "list"]])
def test_unknown_run_folder(tmp_path: Path, command: list[str]) -> None:
    """A folder that holds no run is told by name."""
    told = one_line(trimtab(*command, "--out", str(tmp_path / "nowhere")), 2)
    assert told == f"{tmp_path / 'nowhere'} is not a run's folder"


def test_report_of_nothing(tmp_path: Path) -> None:
    """A report needs a run."""
    assert "is not a run's folder" in one_line(trimtab("report", str(tmp_path)), 2)


def test_unknown_service(run_file: Path, folder: Path) -> None:
    """Only services that exist can be started."""
    told = one_line(trimtab("up", str(run_file), "--service", "critic", "--out", str(folder)), 2)
    assert told.startswith("no service critic: expected one of policy, reference, reward")


def test_unreachable_address() -> None:
    """Nobody there is nobody's mistake here: exit 1, one line, within seconds."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        told = one_line(trimtab("generate", "--address", address, "--prompt", "hi"), 1)
        assert told == f"no policy service answers at {address}"
        told = one_line(trimtab("score", "--address", address, "--completion", "hi"), 1)
        assert told == f"no reward service answers at {address}"


@pytest.mark.parametrize("command", [("generate", "--prompt"), ("score", "--completion")])
def test_text_that_is_no_utf8(command: tuple[str, str], address: str) -> None:
    """Bytes that no message can hold are told in one line, before anybody is called."""
    told = one_line(trimtab(command[0], "--address", address, command[1], "\udcff"), 2)
    assert told.startswith("a text is no UTF-8: ")


@pytest.mark.parametrize("flag", ["--max-new-tokens", "--n", "--seed"])
def test_numbers_that_no_message_holds(flag: str) -> None:
    """They are refused as the flag's, exit 2, without a stack trace."""
    done = trimtab("generate", "--address", "127.0.0.1:1", "--prompt", "a", flag, "9" * 23)
    assert done.returncode == 2
    assert flag in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["[]", "{}", '{"pid": 1, "services": 3}', "no JSON"])
def test_endpoints_that_are_damaged(folder: Path, text: str) -> None:
    """Whatever stands in a run's list of endpoints, status says in one line that it is damaged."""
    layout = RunLayout.prepare(folder)
    layout.endpoints_file.write_text(text)
    told = one_line(trimtab("status", "--out", str(folder)), 1)
    assert told.startswith(f"{layout.endpoints_file} is damaged: ")


def test_queue_that_is_not_there() -> None:
    """The queue's URL and the run go together, and a server that is away is told in one line."""
    told = one_line(trimtab("queue", "list", "--url", "redis://127.0.0.1:1"), 2)
    assert told == "--url and --run-uid go together"
    done = trimtab("queue", "dead", "--url", "redis://127.0.0.1:1", "--run-uid", "u")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_mistyped_flag_needs_no_stack_trace(run_file: Path) -> None:
    """typer's own messages, exit 2."""
    done = trimtab("train", str(run_file), "--setp", "3")
    assert done.returncode == 2
    assert "--setp" in done.stderr
    assert "Traceback" not in done.stderr


class FakePolicy(policy_grpc.PolicyServiceServicer):
    """Echoes what it was asked for."""

    def Generate(self, request: Any, context: Any) -> policy.GenerateResponse:
        if not request.prompts[0].text:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompts[0]: expected text")
        options = request.sampling
        texts = [
            f"{options.max_new_tokens} {options.temperature:g} {options.seed} {i}"
            for i in range(options.num_completions)
        ]
        completions = [
            rollout.Completion(text=text, finish_reason=common.FINISH_REASON_STOP) for text in texts
        ]
        return policy.GenerateResponse(
            results=[policy.GeneratedCompletions(completions=completions) for _ in request.prompts]
        )


class FakeReward(reward_grpc.RewardServiceServicer):
    """Scores by length; an empty answer is an error."""

    def ListModels(self, request: Any, context: Any) -> reward.ListModelsResponse:
        return reward.ListModelsResponse(models=[reward.RewardModelInfo(name="length")])

    def Score(self, request: Any, context: Any) -> reward.ScoreResponse:
        if request.model != "length":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model}")
        return reward.ScoreResponse(scores=[self._score(one.completion) for one in request.inputs])

    def _score(self, text: str) -> common.Score:
        if not text:
            return common.Score(error=common.ErrorInfo(code="INVALID_ARGUMENT", message="nothing to score"))
        return common.Score(value=len(text), model="length")


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_grpc.add_PolicyServiceServicer_to_server(FakePolicy(), server)
    reward_grpc.add_RewardServiceServicer_to_server(FakeReward(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_generate(address: str) -> None:
    """Flags arrive as sampling options; text or JSON comes out."""
    flags = ["--prompt", "hi", "--max-new-tokens", "5", "--temperature", "0.5", "--n", "2", "--seed", "7"]
    done = trimtab("generate", "--address", address, *flags)
    assert done.stdout.splitlines() == ["5 0.5 7 0", "5 0.5 7 1"]
    rows = json.loads(trimtab("generate", "--address", address, *flags, "-o", "json").stdout)
    assert [(row["prompt"], row["finish_reason"]) for row in rows] == [("hi", "stop")] * 2
    told = one_line(trimtab("generate", "--address", address, "--prompt", ""), 2)
    assert told == f"policy at {address}: prompts[0]: expected text"


def test_score(address: str) -> None:
    """One score per answer; a row that cannot be scored is an error, never 0."""
    done = trimtab("score", "--address", address, "--completion", "four", "--completion", "sixsix")
    assert done.stdout.split() == ["4", "6"]
    told = one_line(trimtab("score", "--address", address, "--model", "hh", "--completion", "a"), 2)
    assert told == f"reward at {address}: no model hh"
    done = trimtab("score", "--address", address, "--completion", "four", "--completion", "")
    assert done.returncode == 1
    assert done.stdout.split() == ["4", "error"]
    assert done.stderr == "trimtab: 1 of 2 not scored: nothing to score\n"


async def test_up_status_logs_down(run_file: Path, folder: Path) -> None:
    """A detached run is seen, its queue looked into, and ended from another terminal; no process is left."""
    out = ["--out", str(folder)]
    done = trimtab("up", str(run_file), *out, "--service", "policy", "--service", "preference", "--detach")
    assert done.returncode == 0, done.stderr
    told = json.loads(trimtab("status", *out, "-o", "json").stdout)
    assert {name: one["phase"] for name, one in told["services"].items()} == {
        "queue": "serving",
        "policy": "serving",
        "preference": "serving",
    }
    assert "password" not in json.dumps(told)
    assert "serving" in trimtab("status", *out).stdout
    assert '"event": "serving"' in trimtab("logs", "policy", *out).stdout
    assert "no log of critic" in one_line(trimtab("logs", "critic", *out), 2)
    assert "a run is going on" in one_line(trimtab("up", str(run_file), *out, "--overwrite"), 2)
    pids = [told["pid"], *(one["pid"] for one in told["services"].values())]
    assert trimtab("down", *out).stdout == f"{folder} is down\n"
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert "nothing runs in" in one_line(trimtab("down", *out), 2)
    assert "stopped" in trimtab("status", *out).stdout


async def test_dead_letters_are_seen_and_requeued(run_file: Path, folder: Path) -> None:
    """What nobody could digest is listed with its reason, and put back where it came from."""
    out = ["--out", str(folder)]
    assert trimtab("up", str(run_file), *out, "--service", "preference", "--detach").returncode == 0
    published = json.loads((folder / "endpoints.json").read_text())
    await _bury_one(admin_url(folder), published["run_uid"])
    (row,) = json.loads(trimtab("queue", "dead", *out, "-o", "json").stdout)
    assert (row["group"], row["reason"]) == ("g-1", "indigestible")
    assert "indigestible" in trimtab("queue", "dead", *out).stdout
    assert trimtab("queue", "requeue", row["id"], *out).stdout == "requeued 1\n"
    assert json.loads(trimtab("queue", "dead", *out, "-o", "json").stdout) == []
    stages = json.loads(trimtab("queue", "list", *out, "-o", "json").stdout)["stages"]
    assert {stage["stage"]: stage["groups"] for stage in stages}["learner"] == 1
    assert one_line(trimtab("queue", "requeue", "1-1", *out), 2) == "no dead letter 1-1"


async def _bury_one(url: str, run_uid: str) -> None:
    queue = RedisStages(url, run_uid, consumer="test")
    await queue.start_epoch(at_least=0)
    await queue.admit("learner", [NewEntry(group_id="g-1", admission_number=1, payload=b"x")])
    (entry,) = await queue.take("learner", limit=1, block_seconds=5)
    await queue.bury(entry, reason="indigestible")
    await queue.close()


def test_detached_run_that_cannot_start_is_told(run_file: Path, folder: Path) -> None:
    """The one line of the process in the background becomes the command's own, and nothing stays up."""
    folder.mkdir()
    (folder / "run_uid").write_text("not a uid!")
    told = one_line(trimtab("up", str(run_file), "--out", str(folder), "--resume", "--detach"), 2)
    assert "run_uid: 'not a uid!' is no uid" in told
    assert RunLayout(folder).supervisor_pid() is None


async def test_ctrl_c_drains(run_file: Path, folder: Path) -> None:
    """SIGINT during `up`: services drain, exit 130, no process left."""
    # Where the tests themselves run in the background of a script, SIGINT is ignored, and that is inherited.
    process = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
        [
            "env",
            "--default-signal=INT",
            *CLI,
            "up",
            str(run_file),
            "--service",
            "policy",
            "--out",
            str(folder),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while "policy serves" not in await asyncio.to_thread(process.stdout.readline):
            assert process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(process.communicate)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert time.monotonic() - begun < 30
    assert '"event": "draining"' in (folder / "logs" / "policy.log").read_text()
    assert not any(child.is_running() for child in children)


def test_train_to_the_end(run_file: Path, folder: Path) -> None:
    """`trimtab train` comes back with 0 when the learner has ended, its account printed."""
    done = trimtab("train", str(run_file), "--out", str(folder), "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert "24 groups admitted = 24 trained" in done.stderr
    assert "seed = 5" in (folder / "run.toml").read_text()
