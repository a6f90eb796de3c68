"""The queue server's users: a whole run passes with them, and none may do more than it must."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions

from orchestrator.local.queue_server import QueueServer, find_binary
from services.common.errors import InvalidInput, Unauthenticated
from services.common.stages.base import LEARNER_STAGE, Advance, NewEntry
from services.common.stages.consumer import Consumer
from services.common.stages.entry import GROUP, RunKeys
from services.common.stages.rights import OPERATOR, VIEWER, Grant, acl_line, grants
from tests.contract.queue_users import PASSWORD, SLIP, Users, whole_run


@pytest.fixture(scope="module", params=["valkey9", "redis7"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    binary = shutil.which("redis-server") if request.param == "redis7" else find_binary()
    if binary is None:
        pytest.skip("redis-server (Debian's Redis 7) is not installed on this machine")
    made = QueueServer(tmp_path_factory.mktemp("rights"), binary=Path(binary))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def admin(server: QueueServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as client:
        yield client


async def test_a_whole_run_passes_with_the_users_of_its_services(server: QueueServer, admin: Any) -> None:
    """Each step of each role is allowed to its user, and the server refused nothing on the way."""
    admin.execute_command("ACL", "LOG", "RESET")
    users = Users(admin, server.port)
    await whole_run(users)
    assert admin.execute_command("ACL", "LOG") == []
    assert admin.keys(users.keys.every) == []


def _without(granted: Sequence[Grant]) -> Iterator[tuple[str, list[Grant]]]:
    """Each way to have one right less: a command, a key, or half the access."""
    for at, grant in enumerate(granted):
        fewer = [
            *(
                (f"without {each}", replace(grant, commands=_all_but(grant.commands, each)))
                for each in grant.commands
            ),
            *((f"not on {each}", replace(grant, keys=_all_but(grant.keys, each))) for each in grant.keys),
        ]
        if grant.access == "both":
            fewer += [
                ("to read", replace(grant, access="read")),
                ("to write", replace(grant, access="write")),
            ]
        for what, less in fewer:
            left = [less] if less.commands and less.keys else []
            yield f"{grant.selector()} {what}", [*granted[:at], *left, *granted[at + 1 :]]


def _all_but(values: tuple[str, ...], one: str) -> tuple[str, ...]:
    return tuple(value for value in values if value != one)


async def test_no_user_has_a_right_that_its_steps_do_not_need(server: QueueServer, admin: Any) -> None:
    """With any command, key or half of an access less, the same run is refused something."""
    uid = "run-less"
    whole = grants(uid, SLIP)
    spare = []
    # One worker for all: their rights differ in names alone.
    for service in (SLIP[0], LEARNER_STAGE, VIEWER, OPERATOR):
        for what, less in _without(whole[service]):
            users = Users(admin, server.port, {**whole, service: less}, uid)
            try:
                await whole_run(users)
            except Unauthenticated:
                pass
            else:
                spare.append(f"{service}: {what}")
            admin.delete(*admin.keys(users.keys.every) or ["none"])
    assert not spare, "\n".join(spare)


def test_workers_differ_in_their_streams_alone() -> None:
    """A stage in the middle has the first one's rights on its own names; the last appends to the learner's stream."""
    users = grants("r", ("a", "b", "c"))
    lines = {name: acl_line("u", PASSWORD, granted) for name, granted in users.items()}
    assert lines["b"] == lines["a"].replace(":stage:b ", ":stage:c ").replace(":stage:a ", ":stage:b ")
    assert lines["c"] == lines["b"].replace("%W~trimtab:{r}:stage:c ", "").replace(":stage:b ", ":stage:c ")


def _refused(client: Any, *command: str | int) -> bool:
    try:
        client.execute_command(*command)
    except exceptions.NoPermissionError:
        return True
    except exceptions.ResponseError as error:
        return "ACL failure" in str(error) or "The user executing the script can't" in str(error)
    return False


@pytest.mark.parametrize("service", [*SLIP, LEARNER_STAGE, VIEWER, OPERATOR])
def test_nobody_reaches_another_run_or_the_server_itself(
    server: QueueServer, admin: Any, service: str
) -> None:
    """No user may read another run's keys, list keys, empty, configure or stop the server, by a script or without."""
    users, other = Users(admin, server.port), RunKeys("another")
    admin.set(other.epoch, "1")
    server_wide = [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("SCRIPT", "FLUSH"),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("INFO",),
        ("PUBLISH", "x", "y"),
    ]
    foreign = [
        ("GET", other.epoch),
        ("XRANGE", other.stage("policy"), "-", "+"),
        ("XADD", other.stage("learner"), "*", "a", "b"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, other.epoch),
        ("EVAL", "return redis.call('GET', ARGV[1])", 0, other.epoch),
        ("EVAL", "return redis.call('FLUSHALL')", 0),
        ("UNLINK", other.epoch),
    ]
    with users.raw(service) as client:
        assert client.ping()
        assert [command for command in (*server_wide, *foreign) if not _refused(client, *command)] == []
    assert admin.get(other.epoch) == b"1"


def test_a_worker_reads_and_writes_no_stream_but_its_own(server: QueueServer, admin: Any) -> None:
    """It adds to the next stage, the learner's and the dead letters, sees none of them, and moves nothing there."""
    users = Users(admin, server.port)
    keys = users.keys
    theirs = [keys.stage("reward/hh"), keys.stage(LEARNER_STAGE), keys.dead]
    with users.raw("policy") as client:
        for key in theirs:
            assert client.xadd(key, {"group_id": "g"})
            for command in (
                ("XRANGE", key, "-", "+"),
                ("XLEN", key),
                ("XREAD", "STREAMS", key, "0"),
                ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", key, ">"),
                ("XDEL", key, "1-1"),
                ("XTRIM", key, "MAXLEN", "0"),
                ("XGROUP", "DESTROY", key, GROUP),
                ("UNLINK", key),
            ):
                assert _refused(client, *command), command
        for command in (
            ("SET", keys.epoch, "9"),
            ("GET", keys.sentinel),
            ("SET", keys.admitted, "x"),
            ("SMEMBERS", keys.stages),
            ("XGROUP", "DESTROY", keys.stage("policy"), GROUP),
        ):
            assert _refused(client, *command), command
    with users.raw("reward/hh") as client:
        assert _refused(client, "XADD", keys.stage("policy"), "*", "a", "b")
    with users.raw(VIEWER) as client:
        for key in (*theirs, keys.stage("policy")):
            assert _refused(client, "XADD", key, "*", "a", "b")


async def test_a_right_that_is_missing_moves_nothing_and_says_so(server: QueueServer, admin: Any) -> None:
    """Without XADD, XACK, XDEL or XPENDING the group stays where it is, once, and the error names what is missing."""
    for command in ("xadd", "xack", "xdel", "xpending"):
        users = Users(admin, server.port)
        learner = Consumer(users.steps(LEARNER_STAGE, "learner-0", SLIP))
        await learner.start_epoch(at_least=0)
        await learner.admit("policy", [NewEntry(group_id="g", admission_number=0, payload=b"x")])
        worker = Consumer(users.steps("policy", "policy-0"))
        [entry] = await worker.take("policy", limit=1, block_seconds=0.1)
        whole = grants(users.uid, SLIP)["policy"]
        poorer = [replace(grant, commands=_all_but(grant.commands, command)) for grant in whole]
        users.grant("policy", poorer)
        for _ in range(2):
            with pytest.raises(Unauthenticated, match=r"^queue server redis://127\.0\.0\.1") as told:
                await worker.advance([Advance(entry=entry, destination="reward/hh", payload=b"y")])
            assert "\n" not in str(told.value)
            assert PASSWORD not in str(told.value)
        scan = await learner.scan()
        assert {view.stage: view.length for view in scan.stages} == {
            "policy": 1,
            "reward/hh": 0,
            "learner": 0,
        }
        # Granted again, the same consumer goes on where it was.
        users.grant("policy", whole)
        assert await worker.advance([Advance(entry=entry, destination="reward/hh", payload=b"y")]) == [True]
        for each in (learner, worker):
            await each.close()


@pytest.mark.parametrize(
    ("uid", "slip"),
    [
        ("a b", SLIP),
        ("a:b", SLIP),
        ("*", SLIP),
        ("a*b", SLIP),
        ("a", ("p y",)),
        ("a", ("p*",)),
        ("a", (OPERATOR,)),
    ],
)
def test_names_that_an_acl_file_cannot_hold_are_refused(uid: str, slip: tuple[str, ...]) -> None:
    """Spaces, patterns and names of other users never get into a user's rights."""
    with pytest.raises(InvalidInput):
        grants(uid, slip)
