"""A server that restarts: whoever was cut off renews first, nobody claims for one lease."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis._parsers.base import BaseParser

from orchestrator.local.queue_server import QueueServer
from services.common.errors import ConfigError, Unauthenticated, Unavailable
from services.common.stages.base import LEASE_SECONDS, NewEntry
from services.common.stages.consumer import Consumer
from services.common.stages.link import _passes
from services.common.stages.redis_stages import RedisStages
from tests.contract.harness import RedisHarness

STAGE = "policy"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path)
    made.start()
    yield made
    made.stop()


def restart(server: QueueServer, harness: RedisHarness) -> None:
    """As a crash would, but for the last second of writes."""
    assert harness.raw.waitaof(1, 0, 5000)[0] == 1
    harness.raw.close()
    server.kill()
    server.start()


async def admit(harness: RedisHarness, count: int) -> Consumer:
    learner = harness.connect("learner-0", (STAGE,))
    await learner.start_epoch(at_least=0)
    await learner.admit(
        STAGE, [NewEntry(group_id=f"g{at}", admission_number=at, payload=b"x") for at in range(count)]
    )
    return learner


async def test_nobody_claims_for_a_lease_after_a_restart(server: QueueServer) -> None:
    """Entries that became idle while the server was away stay their owners' for one lease more."""
    harness = RedisHarness(server, "run")
    await admit(harness, 1)
    owner, other = harness.connect("owner"), harness.connect("other")
    [entry] = await owner.take(STAGE, limit=1, block_seconds=0)
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    harness.clock.advance(2 * LEASE_SECONDS)
    restart(server, harness)
    harness.silence([entry])
    # By its clock it may claim; that its connection is gone it finds out only in claiming.
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    harness.clock.advance(LEASE_SECONDS - 0.01)
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    assert await owner.renew([entry]) == [True]
    harness.silence([entry])
    [again] = await other.take(STAGE, limit=1, block_seconds=0)
    assert (again.group_id, again.attempts) == ("g0", 1)
    await harness.close()


async def test_nobody_claims_for_a_lease_after_a_server_took_no_writes(server: QueueServer) -> None:
    """The connections stood, and no owner could renew: what became idle meanwhile stays theirs for one lease more."""
    harness = RedisHarness(server, "run")
    await admit(harness, 1)
    owner, other = harness.connect("owner"), harness.connect("other")
    [entry] = await owner.take(STAGE, limit=1, block_seconds=0)
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    other._steps._link._patience = 0.1
    harness.raw.config_set("min-replicas-to-write", 1)
    with pytest.raises(Unavailable, match="NOREPLICAS"):
        await other.take(STAGE, limit=1, block_seconds=0)
    harness.silence([])
    harness.raw.config_set("min-replicas-to-write", 0)
    harness.silence([entry])
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    harness.clock.advance(LEASE_SECONDS - 0.01)
    assert await other.take(STAGE, limit=1, block_seconds=0) == []
    harness.silence([entry])
    [again] = await other.take(STAGE, limit=1, block_seconds=0)
    assert again.group_id == "g0"
    await harness.close()


async def test_scripts_are_loaded_again_after_a_restart(server: QueueServer) -> None:
    """Moves and the learner's calls go on across a restart, which forgets all scripts."""
    harness = RedisHarness(server, "run")
    learner = await admit(harness, 2)
    restart(server, harness)
    await learner.admit(STAGE, [NewEntry(group_id="g2", admission_number=2, payload=b"x")])
    scan = await learner.scan()
    assert scan.sentinel
    assert scan.group_ids == {"g0", "g1", "g2"}
    await harness.close()


async def test_a_learner_gets_back_what_was_on_its_way_when_the_connection_broke(server: QueueServer) -> None:
    """Entries delivered to the learner whose answer got lost are its own and come after the reconnect."""
    harness = RedisHarness(server, "run")
    learner = harness.connect("learner-0", ("learner",))
    await learner.start_epoch(at_least=0)
    await learner.admit("learner", [NewEntry(group_id="g0", admission_number=0, payload=b"x")])
    # Delivered behind its back: what a lost answer looks like from the server.
    harness.raw.xreadgroup("workers", "learner-0", {"trimtab:{run}:stage:learner": ">"})
    assert await learner.take("learner", limit=4, block_seconds=0) == []
    harness.clock.advance(0.01)
    restart(server, harness)
    taken = await learner.take("learner", limit=4, block_seconds=0)
    taken += await learner.take("learner", limit=4, block_seconds=0)
    assert [(entry.group_id, entry.attempts) for entry in taken] == [("g0", 0)]
    await harness.close()


async def test_a_server_that_takes_no_writes_for_now_is_waited_for(server: QueueServer) -> None:
    """Replicas that are not there, as a full disk or a failover: unavailable after the bound, and fine again."""
    harness = RedisHarness(server, "run")
    learner = await admit(harness, 1)
    learner._steps._link._patience = 0.1
    harness.raw.config_set("min-replicas-to-write", 1)
    second = [NewEntry(group_id="g1", admission_number=1, payload=b"x")]
    with pytest.raises(Unavailable, match="NOREPLICAS"):
        await learner.admit(STAGE, second)
    harness.raw.config_set("min-replicas-to-write", 0)
    await learner.admit(STAGE, second)
    assert (await learner.scan()).group_ids == {"g0", "g1"}
    await harness.close()


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", True),
        (
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            True,
        ),
        ("BUSY Valkey is busy running a script.", True),
        ("LOADING Valkey is loading the dataset in memory", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("NOPERM User policy has no permissions to run the 'xadd' command", False),
        ("WRONGPASS invalid username-password pair or user is disabled.", False),
        ("NOAUTH Authentication required.", False),
        ("BUSYGROUP Consumer Group name already exists", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_which_answers_pass(answer: str, passes: bool) -> None:
    """What a moment mends is waited for; what somebody has to mend is said at once."""
    assert _passes(BaseParser.parse_error(answer)) is passes


async def test_a_server_that_stays_away_is_unavailable_after_the_bound() -> None:
    """The error names the server, never its password."""
    url = "redis://:secret-word@127.0.0.1:1/0"
    queue = RedisStages(url, "run", consumer="w", patience_seconds=0.1)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as told:
        await queue.take(STAGE, limit=1, block_seconds=0)
    assert "secret-word" not in str(told.value)
    await queue.leave()
    await queue.close()


async def test_a_wrong_password_is_told_at_once(server: QueueServer) -> None:
    """It is not retried like an outage."""
    queue = RedisStages(f"redis://:wrong@127.0.0.1:{server.port}", "run", consumer="w")
    with pytest.raises(Unauthenticated, match="invalid username-password"):
        await queue.take(STAGE, limit=1, block_seconds=0)
    await queue.close()


def test_a_url_of_another_kind_is_a_config_error() -> None:
    """One clear line for a mistake in the configuration."""
    with pytest.raises(ConfigError, match=r"queue\.url"):
        RedisStages("http://example", "run", consumer="w")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunt/er2@host:6379/0",
        "redis://:hunt?er2@host:6379/0",
        "redis://:hunt#er2@host:6379/0",
        "redis://:hunt[er2@host:6379/0",
        "redis://:hunt:er2",
        "redis://[::1",
        "redis://host:6379/0?password=hunt@er2",
    ],
)
def test_a_password_that_is_not_encoded_is_told_and_not_shown(url: str) -> None:
    """One line says how a URL is written; nothing of the password stands in it."""
    with pytest.raises(
        ConfigError, match=r"^queue\.url: expected redis://user:password@host:port/db "
    ) as told:
        RedisStages(url, "run", consumer="w")
    assert "hunt" not in str(told.value)
    assert "er2" not in str(told.value)


async def test_a_full_server_is_waited_for_and_loses_nothing(server: QueueServer) -> None:
    """Out of memory refuses the move before it begins; with room again, the same call succeeds."""
    harness = RedisHarness(server, "run")
    learner = await admit(harness, 1)
    worker = RedisStages(server.url, "run", consumer="w", patience_seconds=0.2)
    [entry] = await worker.take(STAGE, limit=1, block_seconds=0)
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="maxmemory"):
            await worker.hand_back([(entry, b"half")])
        raw.config_set("maxmemory", "0")
    assert (await learner.scan()).group_ids == {"g0"}
    assert await worker.hand_back([(entry, b"half")]) == [True]
    await worker.close()
    await harness.close()
