"""The caller of the call in progress, for whoever works on it. Knows no transport.

Decision: outside of a guarded call there is no caller, and current() refuses. A door that forgot its guard
must not let everybody in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from services.common.access.gate import Permit
from services.common.errors import Unauthenticated

_CURRENT: ContextVar[Permit] = ContextVar("trimtab_permit")


def current() -> Permit:
    """The permit of the call in progress. Ask on the event loop: threads do not inherit it.

    Unauthenticated outside of a call.
    """
    try:
        return _CURRENT.get()
    except LookupError:
        raise Unauthenticated("nobody has asked who calls") from None


@contextmanager
def entered(permit: Permit) -> Iterator[Permit]:
    """What runs inside, tasks begun there too, runs for this caller."""
    token = _CURRENT.set(permit)
    try:
        yield permit
    finally:
        _CURRENT.reset(token)
