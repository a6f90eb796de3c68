"""Whether this replica leads."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.control.election import Election, LeaseRecord, Timing, Wish

THEIRS = LeaseRecord(holder="other", duration_seconds=15, renewed="t0")
OURS = replace(THEIRS, holder="me")


def test_without_a_lease_one_is_made() -> None:
    """And from before it was sent the replica leads, until renewals fail."""
    election = Election("me")
    assert election.wish(None, 100) is Wish.CREATE
    assert not election.leads(100)
    election.renewed(sent_at=100)
    assert election.leads(109.9)
    assert not election.leads(110)


def test_a_holder_that_renews_is_waited_for() -> None:
    """However long it takes, as long as its record changes within its duration."""
    election = Election("me")
    for now in range(0, 100, 10):
        assert election.wish(replace(THEIRS, renewed=f"t{now}"), now) is Wish.WAIT


def test_a_holder_that_went_silent_is_replaced_after_its_own_duration_by_our_clock() -> None:
    """Counted from when we first saw that record: clocks of two machines are never compared."""
    election = Election("me")
    assert election.wish(THEIRS, 1000) is Wish.WAIT
    assert election.wish(THEIRS, 1014.9) is Wish.WAIT
    assert election.wish(THEIRS, 1015) is Wish.TAKE


def test_a_lease_given_back_is_taken_at_once() -> None:
    """An empty holder is nobody."""
    assert Election("me").wish(replace(THEIRS, holder=""), 0) is Wish.TAKE


def test_who_sees_another_holder_leads_no_more() -> None:
    """At once, whatever time its own renewal would still give it."""
    election = Election("me")
    election.wish(None, 0)
    election.renewed(0)
    assert election.leads(1)
    assert election.wish(THEIRS, 1) is Wish.WAIT
    assert not election.leads(1)


def test_ours_is_renewed_also_after_a_restart_under_the_same_name() -> None:
    """But it leads only once its own write went through."""
    election = Election("me")
    assert election.wish(OURS, 0) is Wish.RENEW
    assert not election.leads(0)
    election.renewed(0)
    assert election.leads(0)


def test_writes_stop_before_others_may_take_over() -> None:
    """The last moment in which we lead is before the first in which another may take the lease."""
    timing = Timing(lease_seconds=15, renew_seconds=10)
    ours, theirs = Election("me", timing), Election("other", timing)
    ours.wish(None, 0)
    ours.renewed(0)
    held = replace(OURS, duration_seconds=timing.lease_seconds)
    # The other sees our record at the earliest when it was written.
    assert theirs.wish(held, 0.0) is Wish.WAIT
    takes = next(now / 10 for now in range(1000) if theirs.wish(held, now / 10) is Wish.TAKE)
    stops = next(now / 10 for now in range(1000) if not ours.leads(now / 10))
    assert takes - stops == 5.0
