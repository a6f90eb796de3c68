"""Who gets weights from whom."""

from __future__ import annotations

from services.learner.relay import Relay
from services.models.manifest import Version

ONE, TWO = Version(1, 1, "a"), Version(1, 2, "b")


def relay_of(count: int) -> Relay:
    relay = Relay()
    for at in range(count):
        relay.joined(f"r{at}")
    return relay


def test_only_the_first_asks_the_learner() -> None:
    """Eight readers: one comes to the learner, each passes on to two at most, and all hang together."""
    relay = relay_of(8)
    parents = {f"r{at}": relay.sources(f"r{at}", ONE) for at in range(8)}
    assert [name for name, sources in parents.items() if not sources] == ["r0"]
    firsts = [sources[0] for sources in parents.values() if sources]
    assert max(firsts.count(name) for name in firsts) == 2
    for name in parents:
        at, steps = name, 0
        while parents[at]:
            at, steps = parents[at][0], steps + 1
        assert at == "r0"
        assert steps <= 3


def test_a_reader_without_an_address_is_served_by_a_peer() -> None:
    """It passes nothing on, and costs the learner nothing either."""
    relay = relay_of(3)
    relay.joined("")
    assert relay.sources("", ONE)[0].startswith("r")


def test_who_comes_late_gets_it_from_one_that_has_it() -> None:
    """From those that reported it, in turn; never from itself or from one that has only an older version."""
    relay = relay_of(3)
    relay.holds("r1", TWO)
    relay.holds("r2", TWO)
    relay.holds("r0", ONE)
    relay.joined("new")
    assert {relay.sources("new", TWO)[0] for _ in range(2)} == {"r1", "r2"}
    relay.holds("new", TWO)
    assert relay.sources("new", TWO)[0] != "new"


def test_nobody_depends_on_one_that_failed() -> None:
    """Until it holds a version again; the others stay one tree."""
    relay = relay_of(5)
    relay.failed("r0")
    sources = {name: relay.sources(name, ONE) for name in ("r0", "r1", "r2", "r3", "r4")}
    assert sources["r1"] == []
    assert all("r0" not in several for several in sources.values())
    assert sources["r0"]
    relay.holds("r0", ONE)
    assert relay.sources("r1", ONE) == ["r0"]


def test_who_has_gone_is_nobodys_source() -> None:
    """A reader that connects anew before its old stream is given up stays."""
    relay = relay_of(3)
    relay.joined("r0")
    relay.left("r0")
    assert relay.sources("r1", ONE)[0] == "r0"
    relay.holds("r0", ONE)
    relay.left("r0")
    assert relay.sources("r1", ONE) == []
    assert relay.sources("r2", ONE) == ["r1"]


def test_all_have_failed() -> None:
    """Then everyone asks the learner."""
    relay = relay_of(2)
    relay.failed("r0")
    relay.failed("r1")
    assert relay.sources("r0", ONE) == relay.sources("r1", ONE) == []
