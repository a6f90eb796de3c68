"""A user's mistakes, through the programs themselves: one clear line, an exit status, never a stack trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.local.layout import RunLayout
from orchestrator.local.stack import Stack
from services.common.errors import UserError
from services.learner.checkpoints import Checkpoints
from services.models.loading import load_causal
from tests.fakes.small_runs import ROOT, make_files, program, rows_of, small_spec, write_run
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import model_spec
from trimtab import PolicyClient, ReferenceClient, RewardClient
from trimtab.clients.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and prompts."""
    return make_files(tmp_path_factory.mktemp("files"))


def last_line(done: Done, code: int) -> str:
    """The line that a person reads; there is no stack trace anywhere."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def only_line(done: Done, code: int) -> str:
    """As above, and nothing but structured log lines stands around it."""
    line = last_line(done, code)
    others = [text for text in done.stderr.splitlines() if not text.startswith("{")]
    assert len(others) == 1, done.stderr
    return line


# ------------------------------------------------------------------ models


def test_model_that_is_not_there() -> None:
    """A path that does not exist is not sought on a hub."""
    done = program("services.policy", "--set", "model.path=/no/such/model")
    assert only_line(done, 2) == "trimtab-policy: model /no/such/model: no such file or folder"


@pytest.mark.parametrize("hub", ["offline", "refuses", "silent"])
def test_unknown_hub_id(hub: str, tmp_path: Path) -> None:
    """Told to stay offline, refused or not answered: the one line comes soon, not after minutes of attempts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if hub == "silent":
            listener.listen(16)
        env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": str(int(hub == "offline"))}
        if hub != "offline":
            env["HF_ENDPOINT"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        done = program("services.reference", "--set", "model.path=nobody/nothing", env=env)
    assert time.monotonic() - began < 40
    assert only_line(done, 2).startswith(
        "trimtab-reference: model nobody/nothing could not be loaded: We couldn't connect to"
    )


GGUF = {
    "no-gguf": (b"hello", "not a GGUF file (it does not begin with the letters GGUF)"),
    "empty": (b"", "not a GGUF file (it does not begin with the letters GGUF)"),
    "cut-off": (b"GGUF" + struct.pack("<IQQ", 3, 1, 5), "not a GGUF model that can be read ("),
}


@pytest.mark.parametrize("kind", GGUF)
def test_broken_gguf(kind: str, tmp_path: Path) -> None:
    """What is no GGUF, or ends in the middle, is named; no half-made conversion is left."""
    content, told = GGUF[kind]
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes(content)
    done = program("services.models", str(path), env={"TRIMTAB_CACHE": str(tmp_path / "cache")})
    assert only_line(done, 2).startswith(f"{path}: {told}")
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").iterdir())


# ------------------------------------------------------------------ configurations and prompts


@pytest.mark.parametrize("service", ["policy", "reference", "reward", "learner", "preference"])
def test_invalid_toml(service: str, tmp_path: Path) -> None:
    """File, line, field and what was expected, before anything is loaded."""
    path = tmp_path / "service.toml"
    path.write_text('[log]\nlevel = "info"\n[server]\nport = "many"\n')
    line = only_line(program(f"services.{service}", "--config", str(path)), 2)
    assert line.startswith(f"trimtab-{service}: {path}:")
    if service not in ("policy", "reference", "learner"):
        # The others lack a model or a run, which is told first or counted.
        assert f"{path}:4: server.port: expected a valid integer" in line
    path.write_text("[server\n")
    line = only_line(program(f"services.{service}", "--config", str(path)), 2)
    assert line.startswith(f"trimtab-{service}: {path}:1: server: expected valid TOML: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the prompt file has no prompt"),
        (
            '{"prompt_id": "long", "prompt": "' + "word " * 40 + '"}\n',
            "prompt long has 200 tokens; with 8 new",
        ),
    ],
    ids=["empty", "longer than the context"],
)
def test_wrong_prompts(content: str, told: str, files: Path, tmp_path: Path) -> None:
    """An empty file, a prompt longer than the context: the file, the prompt and the numbers."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content)
    flags = ["--in-process", "--out", str(tmp_path / "run"), "--set", f"data.prompts={prompts}"]
    done = program("orchestrator", "train", str(write_run(files)), *flags)
    line = only_line(done, 2)
    assert line.startswith(f"trimtab: {prompts}")
    assert told in line


@pytest.mark.timeout(180)
@pytest.mark.parametrize("wrong", ["prompts", "model"])
def test_supervised_services_tell_the_command_line(wrong: str, files: Path, tmp_path: Path) -> None:
    """What a service could not begin with is the last line of `trimtab train`, and nothing is started again."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    setting, told = {
        "prompts": (f"data.prompts={empty}", f"{empty}: the prompt file has no prompt"),
        "model": ("model.path=/no/such/model", "model /no/such/model: no such file or folder"),
    }[wrong]
    flags = ["--out", str(tmp_path / "run"), "--set", setting]
    done = program("orchestrator", "train", str(write_run(files)), *flags, seconds=170)
    line = last_line(done, 2)
    assert re.match(r"trimtab: (policy|reference|learner): ", line)
    assert told in line
    assert "trimtab-" not in line
    assert "started again" not in done.stderr
    logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("*.log"))
    assert "Traceback" not in logs


# ------------------------------------------------------------------ ports and services that go away


@pytest.mark.parametrize("field", ["port", "health_port", "metrics_port"])
def test_port_in_use(field: str) -> None:
    """The port is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        done = program("services.reward", "--set", f"server.{field}={port}")
    assert only_line(done, 2) == f"trimtab-reward: port {port} is in use"


def test_killed_service(tmp_path: Path) -> None:
    """A client's call is UNAVAILABLE, the command line one line; both within seconds."""
    with started("reward", "--set", 'models=[{name="length", rule="length"}]', folder=tmp_path) as (
        process,
        address,
    ):
        with RewardClient(address(), attempts=1) as client:
            assert list(client.values([""], ["two words"], model="length")) == [2]
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            with pytest.raises(UnavailableError):
                client.values([""], ["two words"], model="length")
        done = program("orchestrator", "score", "--address", address(), "--completion", "word")
        assert only_line(done, 1) == f"trimtab: no reward service answers at {address()}"


# ------------------------------------------------------------------ what does not fit together


def test_ids_of_another_tokenizer(files: Path, tmp_path: Path) -> None:
    """FAILED_PRECONDITION from policy and reference; a prompt without room is INVALID_ARGUMENT by its field."""
    model = ["--set", f"model.path={files / 'model'}", "--set", "model.threads=1"]
    ids = [1, 2, 3]
    with (
        started("policy", *model, folder=tmp_path) as (_, policy),
        started("reference", *model, folder=tmp_path) as (_, reference),
    ):
        with PolicyClient(policy()) as client:
            with pytest.raises(FailedPreconditionError, match="the ids are of tokenizer 0000"):
                client.generate([ids], tokenizer_fingerprint="0" * 64, max_new_tokens=4)
            with pytest.raises(InvalidArgumentError) as caught:
                client.generate(["word " * 40], max_new_tokens=4)
            assert caught.value.violations.keys() == {"prompts[0].token_ids"}
            with pytest.raises(InvalidArgumentError, match="the prompt is empty"):
                client.generate([""], max_new_tokens=4)
        with ReferenceClient(reference()) as client:
            with pytest.raises(FailedPreconditionError, match="the ids are of tokenizer 0000"):
                client.logprobs([(ids, ids)], temperature=1.0, tokenizer_fingerprint="0" * 64)
            with pytest.raises(InvalidArgumentError, match="sequences"):
                client.logprobs([(ids, [0] * 200)], temperature=1.0)
    for name in ("policy", "reference"):
        assert "Traceback" not in (tmp_path / f"{name}.log").read_text()


@pytest.mark.timeout(180)
async def test_policy_and_learner_with_different_tokenizers(files: Path, tmp_path: Path) -> None:
    """The run ends at once with what does not fit, before anything is generated."""
    other = make_tiny_causal(tmp_path / "other", extra_tokens=("<|new|>",))
    layout = RunLayout.prepare(tmp_path / "run")
    settings = {"policy": {"model": {"path": str(other)}}}
    async with Stack(layout, small_spec(files), settings=settings) as stack:
        with pytest.raises(UserError, match=r"^policy: the learner trains with tokenizer [0-9a-f]{16}"):
            await stack.ended("learner")
    assert not (layout.root / "metrics.jsonl").exists()
    assert "Traceback" not in layout.log("policy").read_text()


# ------------------------------------------------------------------ a full disk


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own at `folder`; what is yielded sets its size in KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")

    def resize(kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_on_checkpoint(files: Path, tmp_path: Path) -> None:
    """One line and exit 1; the last checkpoint is whole, and with room the run goes on from there."""
    out = tmp_path / "disk" / "run"
    command = ["orchestrator", "train", str(write_run(files)), "--in-process", "--out", str(out)]
    every = ["--set", "checkpoint.every_steps=1"]
    with small_disk(out.parent) as resize:
        assert program(*command, *every, "--steps", "1").returncode == 0
        used = shutil.disk_usage(out.parent).used // 1024
        # A part of the next checkpoint fits: it is cut off in the middle of a file.
        resize(used + 24)
        line = last_line(program(*command, *every, "--resume"), 1)
        assert line.startswith("trimtab: no room on disk for checkpoint step-000002 in ")
        assert line.endswith("(the last one is intact)")
        (intact,) = out.glob("checkpoints/*")
        assert intact.name == "step-000001"
        _, state = Checkpoints(out / "checkpoints", keep=3).read(intact)
        assert state["step"] == 1
        load_causal(model_spec(intact / "model"))
        resize(16 * 1024)
        assert program(*command, *every, "--resume").returncode == 0
        assert [row["step"] for row in rows_of(out)] == [1, 2, 3, 4]


# ------------------------------------------------------------------ programs


@contextmanager
def started(
    service: str, *flags: str, folder: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A service as its own program; its gRPC address once it serves."""
    endpoints, log = folder / f"{service}.json", folder / f"{service}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}", *flags, "--set", f"endpoints_file={endpoints}"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def address() -> str:
        ends = time.monotonic() + 90
        while '"event": "serving"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        return str(json.loads(endpoints.read_text())["grpc"])

    try:
        yield process, address
    finally:
        process.kill()
        process.wait(30)
