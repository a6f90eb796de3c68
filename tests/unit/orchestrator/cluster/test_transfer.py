"""The scripts of rclone's containers, run by a real shell with an rclone that copies from folder to folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.render.storage import FETCH, RESTORE, UPLOAD

# Each copy is noted, fails for each line of `fails`, and ends once `go` is there; listings end as the lines of `lists`.
RCLONE = """\
#!/bin/sh
verb=$1
for last in "$@"; do from=${to:-}; to=$last; done
echo "$verb ${from#$AT/} ${to#$AT/}" >> "$AT/log"
deep=; but=
case "$*" in *--max-depth*) deep="-maxdepth 1" ;; *--exclude*) but="! -name state.json" ;; esac
case $verb in
  copy)
    if [ -s "$AT/fails" ]; then sed -i 1d "$AT/fails"; exit 1; fi
    mkdir -p "$to"
    (cd "$from" && find . $deep -type f $but) | while read -r file; do
      mkdir -p "$to/$(dirname "$file")" && cp "$from/$file" "$to/$file"
    done
    touch "$AT/copied"
    until [ -e "$AT/go" ]; do sleep 0.02; done ;;
  copyto) mkdir -p "$(dirname "$to")" && until [ -e "$AT/go" ]; do sleep 0.02; done && cp "$from" "$to" ;;
  lsf)
    status=0
    if [ -s "$AT/lists" ]; then read -r status < "$AT/lists"; sed -i 1d "$AT/lists"; fi
    [ "$status" = 0 ] || exit "$status"
    [ -d "$to" ] || exit 3
    (cd "$to" && ls -p) ;;
  purge) rm -r "$to" ;;
esac
"""
PATIENCE_SECONDS = 20


class Pod:
    """A folder that is a pod's /storage, one that is the bucket, and what runs on them."""

    def __init__(self, at: Path) -> None:
        self.at, self.bucket, self.run = at, at / "bucket", at / "storage" / "runs" / "a"
        self.run.mkdir(parents=True)
        self.bucket.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        (at / "bin").mkdir()
        (at / "bin" / "rclone").write_text(RCLONE, encoding="utf-8")
        (at / "bin" / "rclone").chmod(0o755)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        env = {
            "AT": str(self.at),
            "STORE": str(self.bucket),
            "RUN": "runs/a",
            "KEEP": "2",
            "SECONDS_BETWEEN": "0.05",
        }
        env["PATH"] = f"{self.at / 'bin'}:{os.environ['PATH']}"
        text = script.replace('"/storage/', f'"{self.at}/storage/')
        self.processes.append(subprocess.Popen(["/bin/sh", "-c", text, "script", *arguments], env=env))
        return self.processes[-1]

    def log(self) -> list[str]:
        place = self.at / "log"
        return place.read_text(encoding="utf-8").splitlines() if place.exists() else []

    def go(self) -> None:
        (self.at / "go").touch()

    def checkpoint(self, step: int) -> None:
        folder = self.run / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "model").touch()
        (folder / "state.json").touch()

    def wait_for(self, question: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not question():
            assert time.monotonic() < ends, self.log()
            time.sleep(0.01)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    yield made
    made.go()
    for process in made.processes:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def test_what_is_written_during_an_upload_is_uploaded_last(pod: Pod) -> None:
    """SIGTERM while rclone copies: that copy ends, and everything is copied once more before the sidecar ends."""
    upload = pod.start(UPLOAD)
    pod.wait_for((pod.at / "copied").exists)
    (pod.run / "sft").mkdir()
    (pod.run / "sft" / "model.safetensors").touch()
    upload.send_signal(signal.SIGTERM)
    pod.go()
    assert upload.wait(PATIENCE_SECONDS) == 0
    assert (pod.bucket / "runs" / "a" / "sft" / "model.safetensors").exists()


def test_the_last_upload_is_tried_until_it_succeeds(pod: Pod) -> None:
    """A store that is away at the end costs time, not the model."""
    (pod.at / "fails").write_text("once\n" * 4, encoding="utf-8")
    (pod.run / "model").touch()
    pod.go()
    upload = pod.start(UPLOAD)
    pod.wait_for(lambda: bool(pod.log()))
    upload.send_signal(signal.SIGTERM)
    assert upload.wait(PATIENCE_SECONDS) == 0
    assert (pod.bucket / "runs" / "a" / "model").exists()


def test_a_checkpoint_is_called_whole_once_all_of_it_is_there(pod: Pod) -> None:
    """One that is finished during a copy gets its state.json by the next; the newest are kept."""
    pod.checkpoint(1)
    upload = pod.start(UPLOAD)
    pod.wait_for((pod.at / "copied").exists)
    pod.checkpoint(2)
    pod.checkpoint(3)
    upload.send_signal(signal.SIGTERM)
    pod.go()
    assert upload.wait(PATIENCE_SECONDS) == 0
    states = [line.rpartition("checkpoints/")[2] for line in pod.log() if line.startswith("copy")]
    first, last = [place for place, line in enumerate(states) if "state.json" not in line]
    assert states[first + 1 : last] == ["step-1/state.json"]
    assert states[last + 1 :] == [f"step-{step}/state.json" for step in (1, 2, 3)]
    kept = pod.bucket / "runs" / "a" / "checkpoints"
    assert sorted(one.name for one in kept.glob("*/state.json")) == ["state.json"] * 2
    assert not (kept / "step-1").exists()


@pytest.mark.parametrize("script", [FETCH, RESTORE], ids=["fetch", "restore"])
def test_what_is_fetched_for_nobody_ends(pod: Pod, script: str) -> None:
    """A pod that is deleted while its files come does not wait for them."""
    (pod.bucket / "model").touch()
    fetch = pod.start(script, "model")
    pod.wait_for(lambda: bool(pod.log()))
    fetch.send_signal(signal.SIGTERM)
    assert fetch.wait(PATIENCE_SECONDS) == 143
    assert not (pod.at / "storage" / "model").exists()


def test_a_newest_whole_checkpoint_is_restored(pod: Pod) -> None:
    """One without its state.json is passed over; what a pod reads comes with it."""
    for step in (1, 2):
        pod.checkpoint(step)
    (pod.run / "checkpoints" / "step-2" / "state.json").unlink()
    (pod.run.parent).rename(pod.bucket / "runs")
    (pod.bucket / "model").touch()
    pod.go()
    assert pod.start(RESTORE, "model").wait(PATIENCE_SECONDS) == 0
    assert (pod.at / "storage" / "model").exists()
    assert [one.name for one in (pod.run / "checkpoints").iterdir()] == ["step-1"]
    assert (pod.run / "checkpoints" / "step-1" / "state.json").exists()


@pytest.mark.parametrize("listing", [0, 1, 2])
@pytest.mark.parametrize("status", [1, 3, 5])
def test_a_listing_that_fails_ends_the_attempt(pod: Pod, listing: int, status: int) -> None:
    """Not even "directory not found" is believed of what was seen a moment before; nobody begins at step 0 for it."""
    pod.checkpoint(1)
    (pod.run.parent).rename(pod.bucket / "runs")
    (pod.at / "lists").write_text("0\n" * listing + f"{status}\n", encoding="utf-8")
    pod.go()
    is_new = listing == 0 and status == 3
    assert pod.start(RESTORE).wait(PATIENCE_SECONDS) == (0 if is_new else 1)
    assert not list(pod.run.iterdir())


@pytest.mark.parametrize("copy", [0, 1], ids=["the checkpoint", "the files beside"])
def test_a_copy_that_fails_ends_the_attempt(pod: Pod, copy: int) -> None:
    """A run is restored as a whole or not at all."""
    pod.checkpoint(1)
    (pod.run / "metrics.jsonl").touch()
    (pod.run.parent).rename(pod.bucket / "runs")
    if copy:
        (pod.bucket / "runs" / "a" / "checkpoints" / "step-1" / "state.json").unlink()
    (pod.at / "fails").write_text("once\n", encoding="utf-8")
    pod.go()
    assert pod.start(RESTORE).wait(PATIENCE_SECONDS) == 1


@pytest.mark.parametrize("empty", [True, False], ids=["an empty folder", "no folder"])
def test_a_run_without_a_past_begins(pod: Pod, empty: bool) -> None:
    """Stores say it in two ways; what the pod reads is there all the same."""
    if empty:
        (pod.bucket / "runs" / "a").mkdir(parents=True)
    (pod.bucket / "model").touch()
    pod.go()
    assert pod.start(RESTORE, "model").wait(PATIENCE_SECONDS) == 0
    assert (pod.at / "storage" / "model").exists()
