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

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import redis_secret, render_run
from orchestrator.cluster.render.redis import settings_of
from orchestrator.local.ports import free_ports
from orchestrator.local.queue_server import find_binary
from orchestrator.queue_users import QueueUsers
from services.common.stages.base import NewEntry
from services.common.stages.redis_stages import RedisStages
from tests.unit.orchestrator.cluster.objects import run

UID = "helpful-0123abcd"
PASSWORD = "p@ss/word"  # noqa: S105 of this test


def secret_of(spec: TrainingRun, users: QueueUsers) -> dict[str, str]:
    data = redis_secret(spec, RunNames.of(spec), users)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


USERS = QueueUsers.draw(UID, ("policy", "reference", "reward"))


def url_of(who: str, port: int) -> str:
    return USERS.url(who, f"redis://127.0.0.1:{port}/0")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server with the rendered settings and users, but for its folder and port."""
    [number] = free_ports(1, "127.0.0.1")
    users = tmp_path / "users.acl"
    users.write_text(secret_of(run(), USERS)["users.acl"], encoding="utf-8")
    settings = settings_of(run(), RunNames.of(run())).replace("bind * -::*", "bind 127.0.0.1")
    settings = settings.replace("port 6379", f"port {number}")
    settings = settings.replace("dir /data", f"dir {tmp_path}")
    settings = settings.replace("/etc/valkey/users/users.acl", str(users))
    config = tmp_path / "valkey.conf"
    config.write_text(settings, encoding="utf-8")
    process = subprocess.Popen([str(find_binary()), str(config)], stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 30
        while True:
            try:
                with redis.Redis.from_url(url_of("operator", number)) as client:
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


async def test_services_reach_their_stages_and_nothing_else(port: int) -> None:
    """With the services' users the queue works; another's stage, another run and the server are out of reach."""
    stages = RedisStages(url_of("learner", port), UID, consumer="learner", stages=("policy",))
    worker = RedisStages(url_of("policy", port), UID, consumer="policy-0")
    try:
        await stages.start_epoch(at_least=0)
        await stages.admit("policy", [NewEntry(group_id="g1", payload=b"x", admission_number=1)])
        [entry] = await worker.take("policy", limit=1, block_seconds=5)
        assert entry.payload == b"x"
    finally:
        await worker.close()
        await stages.close()
    with redis.Redis.from_url(url_of("policy", port)) as client:
        for command in (
            ("GET", "trimtab:{other}:epoch"),
            ("XRANGE", f"trimtab:{{{UID}}}:stage:learner", "-", "+"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    with redis.Redis(port=port) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_the_secret_holds_urls_and_hashes() -> None:
    """Each service's key is its whole URL; the server's file has hashes alone; a password with signs is quoted."""
    spec = run()
    users = QueueUsers.draw(UID, spec.spec.rollout.slip, known={"policy": PASSWORD})
    data = secret_of(spec, users)
    assert data["policy"] == f"redis://{UID}.policy:p%40ss%2Fword@helpful-redis.rlhf.svc:6379/0"
    assert len(set(data.values())) == len(data)
    assert not any(password in data["users.acl"] for password in users.passwords.values())
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in data["users.acl"]
    assert data["users.acl"].startswith("user default off\n")


def test_without_acl_the_default_user_has_the_password() -> None:
    """acl: false leaves one password for everybody, for tools that know no users."""
    data = secret_of(run(redis__acl=False), QueueUsers.draw(UID, ("policy", "reward")))
    assert data.pop("users.acl").startswith("user default on #")
    assert len(set(data.values())) == 1


def test_the_queue_url_is_never_in_a_config_map() -> None:
    """Pods take the URL from a Secret, the run's own or the one that is named; a plain URL has no password."""
    own, named, users, plain = (
        next(m for m in render_run(run(**fields)) if m["kind"] == "Deployment")
        for fields in (
            {},
            {"redis__urlSecret": {"name": "q", "key": "u"}},
            {"redis__usersSecret": "q"},
            {"redis__url": "redis://q:6379"},
        )
    )
    values = [
        next(
            e
            for e in m["spec"]["template"]["spec"]["containers"][0]["env"]
            if e["name"] == "TRIMTAB_QUEUE_URL"
        )
        for m in (own, named, users, plain)
    ]
    assert values[0]["valueFrom"]["secretKeyRef"] == {"name": "helpful-redis", "key": "policy"}
    assert values[1]["valueFrom"]["secretKeyRef"] == {"name": "q", "key": "u"}
    assert values[2]["valueFrom"]["secretKeyRef"] == {"name": "q", "key": "policy"}
    assert values[3]["value"] == "redis://q:6379"
    assert not [m for m in render_run(run(redis__url="redis://q:6379")) if m["kind"] == "StatefulSet"]
