"""The run's own queue server: rendered settings and users, on a real server too."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import redis_secret, render_run
from orchestrator.cluster.render.redis import SETTINGS, acl_file
from orchestrator.local.ports import free_ports
from orchestrator.local.queue_server import find_binary
from services.common.stages.base import NewEntry
from services.common.stages.redis_stages import RedisStages
from tests.unit.orchestrator.cluster.objects import run

UID = "helpful-0123abcd"
PASSWORD = "p@ss/word"  # noqa: S105 of this test


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server with the rendered settings and users, but for its folder and port."""
    [number] = free_ports(1, "127.0.0.1")
    users = tmp_path / "users.acl"
    users.write_text(acl_file(UID, "secret", "op", own_user=True), encoding="utf-8")
    settings = SETTINGS.replace("bind * -::*", "bind 127.0.0.1").replace("port 6379", f"port {number}")
    settings = settings.replace("dir /data", f"dir {tmp_path}")
    settings = settings.replace("/etc/valkey/users/users.acl", str(users))
    config = tmp_path / "valkey.conf"
    config.write_text(settings, encoding="utf-8")
    process = subprocess.Popen([str(find_binary()), str(config)], stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 30
        while True:
            try:
                with redis.Redis.from_url(f"redis://operator:op@127.0.0.1:{number}/0") as client:
                    client.ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.05)
        yield number
    finally:
        process.terminate()
        process.wait(20)


async def test_a_run_reaches_its_stages_and_nothing_else(port: int) -> None:
    """With the run's user the whole queue works; another run's keys and the server itself are out of its reach."""
    stages = RedisStages(
        f"redis://run:secret@127.0.0.1:{port}/0", UID, consumer="learner", stages=("policy",)
    )
    worker = RedisStages(f"redis://run:secret@127.0.0.1:{port}/0", UID, consumer="policy-0")
    try:
        await stages.start_epoch(at_least=0)
        await stages.admit("policy", [NewEntry(group_id="g1", payload=b"x", admission_number=1)])
        [entry] = await worker.take("policy", limit=1, block_seconds=5)
        assert entry.payload == b"x"
    finally:
        await worker.close()
        await stages.close()
    with redis.Redis.from_url(f"redis://run:secret@127.0.0.1:{port}/0") as client:
        for command in (
            ("GET", "trimtab:{other}:epoch"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    with redis.Redis(port=port) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_the_secret_holds_urls_and_hashes() -> None:
    """Services get a whole URL; the server's file has hashes alone; a password with signs is quoted."""
    spec = run()
    secret = redis_secret(spec, RunNames.of(spec), password=PASSWORD, operator_password=PASSWORD[::-1])
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert data["url"] == "redis://run:p%40ss%2Fword@helpful-redis.rlhf.svc:6379/0"
    assert PASSWORD not in data["users.acl"]
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in data["users.acl"]
    assert f"~trimtab:{{{UID}}}:*" in data["users.acl"]


def test_without_acl_the_default_user_has_the_password() -> None:
    """acl: false leaves one password for everybody, for tools that know no users."""
    assert acl_file(UID, "a", "b", own_user=False).startswith("user default on #")


def test_the_queue_url_is_never_in_a_config_map() -> None:
    """Pods take the URL from a Secret, the run's own or the one that is named; a plain URL has no password."""
    own, named, plain = (
        next(m for m in render_run(run(**fields)) if m["kind"] == "Deployment")
        for fields in ({}, {"redis__urlSecret": {"name": "q", "key": "u"}}, {"redis__url": "redis://q:6379"})
    )
    values = [
        next(
            e
            for e in m["spec"]["template"]["spec"]["containers"][0]["env"]
            if e["name"] == "TRIMTAB_QUEUE_URL"
        )
        for m in (own, named, plain)
    ]
    assert values[0]["valueFrom"]["secretKeyRef"] == {"name": "helpful-redis", "key": "url"}
    assert values[1]["valueFrom"]["secretKeyRef"] == {"name": "q", "key": "u"}
    assert values[2]["value"] == "redis://q:6379"
    assert not [m for m in render_run(run(redis__url="redis://q:6379")) if m["kind"] == "StatefulSet"]
