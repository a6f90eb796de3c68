"""`trimtab queue users`: files that a server and the services take, for nobody else to read."""

from __future__ import annotations

import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.local.ports import free_ports
from orchestrator.local.queue_server import find_binary
from orchestrator.queue_files import write_users
from services.common.errors import InvalidInput, UserError
from services.common.stages.base import LEARNER_STAGE, Advance, NewEntry
from services.common.stages.redis_stages import RedisStages
from services.common.stages.tools import RedisTools
from tests.fakes.small_runs import program

UID = "helpful-0123abcd"
SLIP = ("policy", "reward/hh")
ONCE = Retry(NoBackoff(), 0)


@contextmanager
def serving(binary: Path, folder: Path, port: int) -> Iterator[None]:
    users = folder / "users" / "users.acl"
    settings = folder / "server.conf"
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\ndir {folder}\nsave ''\naclfile {users}\n", encoding="utf-8"
    )
    process = subprocess.Popen([str(binary), str(settings)], stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 30
        while True:
            try:
                with redis.Redis.from_url((folder / "users" / "admin").read_text(), retry=ONCE) as client:
                    assert client.ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["valkey9", "redis7"])
async def test_a_server_with_the_file_serves_the_services_by_their_urls(tmp_path: Path, kind: str) -> None:
    """The file loads as it is; a group goes from the learner to its end; a stranger is not let in."""
    found = shutil.which("redis-server") if kind == "redis7" else find_binary()
    if found is None:
        pytest.skip("redis-server (Debian's Redis 7) is not installed on this machine")
    [port] = free_ports(1, "127.0.0.1")
    # For all runs of a name, whose uids are not known before they are there.
    names = write_users("helpful-*", f"redis://127.0.0.1:{port}", tmp_path / "users", SLIP, shared=False)
    assert names == ["policy", "reward-hh", "learner", "viewer", "operator"]
    urls = {name: (tmp_path / "users" / "urls" / name).read_text() for name in names}
    with serving(Path(found), tmp_path, port):
        learner = RedisStages(urls["learner"], UID, consumer="l", stages=SLIP)
        workers = {stage: RedisStages(urls[stage.replace("/", "-")], UID, consumer="w") for stage in SLIP}
        await learner.start_epoch(at_least=0)
        await learner.admit("policy", [NewEntry(group_id="g", admission_number=0, payload=b"x")])
        for stage, after in (("policy", "reward/hh"), ("reward/hh", LEARNER_STAGE)):
            [entry] = await workers[stage].take(stage, limit=1, block_seconds=1)
            assert await workers[stage].advance([Advance(entry=entry, destination=after, payload=b"y")]) == [
                True
            ]
        [entry] = await learner.take(LEARNER_STAGE, limit=1, block_seconds=1)
        assert entry.payload == b"y"
        tools = RedisTools(urls["operator"], UID)
        assert await tools.forget() >= 4
        for each in (learner, tools, *workers.values()):
            await each.close()
        with (
            redis.Redis(port=port, retry=ONCE) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.ping()


def test_again_keeps_the_passwords_and_renews_the_rights(tmp_path: Path) -> None:
    """A slip with one more stage: who was there keeps their URL, and the lines know the new stage."""
    server = "rediss://redis.example.com:6380"
    write_users(UID, server, tmp_path, SLIP, shared=False)
    before = {path.name: path.read_text() for path in (tmp_path / "urls").iterdir()}
    admin = (tmp_path / "admin").read_text()
    write_users(UID, server, tmp_path, (*SLIP, "reward/rules"), shared=False)
    after = {path.name: path.read_text() for path in (tmp_path / "urls").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"reward-rules"}
    assert (tmp_path / "admin").read_text() == admin
    assert before["policy"].startswith(f"rediss://{UID}.policy:")
    assert ":stage:reward/rules" in (tmp_path / "users.acl").read_text()


def test_nobody_else_reads_them_and_the_servers_file_has_hashes_alone(tmp_path: Path) -> None:
    """Mode 600 in folders of mode 700; no password in users.acl or on the terminal."""
    out = tmp_path / "users"
    done = program(
        "orchestrator", "queue", "users", UID, "--server", "redis://h:1", "--out", str(out), "--shared"
    )
    assert done.returncode == 0
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (out, out / "urls")} == {0o700}
    passwords = [path.read_text().split(":")[2].split("@")[0] for path in (out / "urls").iterdir()]
    assert len(set(passwords)) == 6
    told = done.stdout + done.stderr + (out / "users.acl").read_text()
    assert not any(password in told for password in passwords)
    # A shared server keeps its default user and its admin.
    assert all(line.startswith(f"user {UID}.") for line in (out / "users.acl").read_text().splitlines())


@pytest.mark.parametrize("server", ["http://h:1", "redis://u:p@h:1", "h:1", "redis://"])
def test_a_server_that_is_none_is_told_without_its_password(tmp_path: Path, server: str) -> None:
    """One line, and nothing is written."""
    with pytest.raises(UserError, match="without user and password") as told:
        write_users(UID, server, tmp_path / "users", SLIP, shared=True)
    assert "u:p" not in str(told.value)
    assert not (tmp_path / "users").exists()
    with pytest.raises(InvalidInput):
        write_users("a b", "redis://h:1", tmp_path / "users", SLIP, shared=True)
