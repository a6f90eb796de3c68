"""A small run in which every role takes every step that it has, by users with rights of their own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import redis

from services.common.stages.base import LEARNER_STAGE, Advance, NewEntry
from services.common.stages.consumer import Consumer
from services.common.stages.entry import GROUP, RunKeys
from services.common.stages.link import Link
from services.common.stages.redis_stages import RedisSteps
from services.common.stages.rights import OPERATOR, VIEWER, Grant, acl_line, grants, user_name
from services.common.stages.tls_files import TlsFiles
from services.common.stages.tools import RedisTools

SLIP = ("policy", "reward/hh")
PASSWORD = "pass"  # noqa: S105 of these tests


class Users:
    """The users of one fresh run on a server, with these rights."""

    def __init__(
        self,
        admin: Any,
        port: int,
        granted: Mapping[str, Sequence[Grant]] | None = None,
        uid: str = "",
        tls: TlsFiles | None = None,
    ) -> None:
        self.uid = uid or f"run-{uuid.uuid4().hex[:8]}"
        self.keys = RunKeys(self.uid)
        self.admin = admin
        self.tls = tls
        self._port = port
        for service, each in (granted or grants(self.uid, SLIP)).items():
            self.grant(service, each)

    def grant(self, service: str, granted: Sequence[Grant]) -> None:
        """From now on these rights and no others."""
        words = acl_line(user_name(self.uid, service), PASSWORD, granted).split(" ")
        # A selector is one argument here, several words in a file.
        self.admin.execute_command("ACL", "SETUSER", *_arguments(words[1:]))

    def url(self, service: str) -> str:
        scheme = "redis" if self.tls is None else "rediss"
        return f"{scheme}://{user_name(self.uid, service)}:{PASSWORD}@127.0.0.1:{self._port}/0"

    def steps(self, service: str, consumer: str, stages: Sequence[str] = ()) -> RedisSteps:
        link = Link(self.url(service), patience_seconds=2, tls=self.tls)
        return RedisSteps(link, self.keys, consumer, stages)

    def raw(self, service: str) -> Any:
        return redis.Redis.from_url(self.url(service))


def _arguments(words: Sequence[str]) -> list[str]:
    made: list[str] = []
    for word in words:
        if made and made[-1].startswith("(") and not made[-1].endswith(")"):
            made[-1] += f" {word}"
        else:
            made.append(word)
    return made


async def whole_run(users: Users) -> None:
    """Every step that there is, by whoever takes it in earnest. Raises what is refused."""
    users.admin.script_flush()
    async with AsyncExitStack() as closing:

        def steps(service: str, consumer: str, stages: Sequence[str] = ()) -> RedisSteps:
            made = users.steps(service, consumer, stages)
            closing.push_async_callback(made.close)
            return made

        def tools(service: str) -> RedisTools:
            made = RedisTools(users.url(service), users.uid, tls=users.tls)
            closing.push_async_callback(made.close)
            return made

        first, second, idler = steps("policy", "policy-0"), steps("policy", "policy-1"), "policy-2"
        policy, reward = Consumer(first), Consumer(steps("reward/hh", "reward-0"))
        # Workers may be there before the learner.
        await first.join("policy")
        users.admin.xgroup_createconsumer(users.keys.stage("policy"), GROUP, idler)
        learner = Consumer(steps(LEARNER_STAGE, "learner-0", SLIP))
        await learner.start_epoch(at_least=0)
        new = [NewEntry(group_id=f"g-{n}", admission_number=n, payload=b"x") for n in range(4)]
        await learner.admit("policy", new)
        await _work(users, policy, second)
        assert await second.claim("policy", 0.0) is None  # sweeps the idler away
        assert idler not in _consumers(users, "policy")
        await _score(reward)
        after = steps(LEARNER_STAGE, "learner-1", SLIP)
        await _learn(users, learner, after)
        for one, stage in ((first, "policy"), (after, LEARNER_STAGE)):
            await one.leave([stage])
        for who in (VIEWER, OPERATOR):
            users.admin.script_flush()
            assert len(await tools(who).dead_letters(limit=9)) == 2
            assert (await tools(who).view()).sentinel
        await _put_back(users, tools(OPERATOR))


async def _work(users: Users, policy: Consumer, second: RedisSteps) -> None:
    users.admin.xadd(users.keys.stage("policy"), {"group_id": "damaged", "payload": "?"})
    entries = await policy.take("policy", limit=4, block_seconds=0.1)
    assert await policy.renew(entries) == [True] * 4
    await policy.take("policy", limit=9, block_seconds=0)  # the damaged one is buried
    await policy.hand_back([(entries[0], b"half")])
    await policy.advance([Advance(entry=entries[1], destination="reward/hh", payload=b"y")])
    await second.join("policy")  # a claim is made on a standing connection alone
    for _ in range(2):
        # Its owner is silent: another one has it, an attempt later, and then fails it for good.
        claimed = await second.claim("policy", 0.0)
        assert claimed is not None
    assert claimed is not None
    other = Consumer(second, attempt_limit=1)
    [again] = await other._decode("policy", [claimed])
    assert await other.fail(again, payload_if_last=b"failed")
    await asyncio.sleep(0.005)
    users.admin.xgroup_delconsumer(users.keys.stage("policy"), GROUP, "policy-0")


async def _score(reward: Consumer) -> None:
    [entry] = await reward.take("reward/hh", limit=4, block_seconds=0.1)
    await reward.advance([Advance(entry=entry, destination=LEARNER_STAGE, payload=b"z")])


async def _learn(users: Users, learner: Consumer, after: RedisSteps) -> None:
    [failed] = await learner.take(LEARNER_STAGE, limit=4, block_seconds=0.1)
    await learner.bury(failed, reason="indigestible")
    assert (await learner.scan()).sentinel
    for key in (users.keys.epoch, users.keys.sentinel):
        users.admin.delete(key)
    await learner.restore_sentinel()
    # Its successor adopts what it held.
    successor = Consumer(after)
    await successor.start_epoch(at_least=0)
    [entry] = await successor.take(LEARNER_STAGE, limit=4, block_seconds=0.1)
    await successor.acknowledge([entry])


async def _put_back(users: Users, tools: RedisTools) -> None:
    [letter] = [one for one in await tools.dead_letters(limit=9) if one.group_id != "damaged"]
    users.admin.delete(users.keys.stage(letter.stage))
    assert await tools.requeue(letter.letter_id)
    assert await tools.forget() >= 5


def _consumers(users: Users, stage: str) -> set[str]:
    return {one["name"].decode() for one in users.admin.xinfo_consumers(users.keys.stage(stage), GROUP)}
