"""The users of a run's queue server with their passwords: lines for the server, a URL for each service.

What each may do is decided in services/common/stages/rights.py. Knows no server and writes no file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

from services.common.errors import UserError
from services.common.stages.rights import Grant, acl_line, grants, user_name

PASSWORD_BYTES = 24


@dataclass(frozen=True, slots=True)
class QueueUsers:
    """Of one run. `passwords` by stage, and of the learner, the viewer and the operator."""

    run_uid: str
    granted: Mapping[str, Sequence[Grant]]
    passwords: Mapping[str, str] = field(repr=False)

    @classmethod
    def draw(
        cls,
        run_uid: str,
        slip: Sequence[str],
        others: Sequence[str] = (),
        *,
        known: Mapping[str, str] | None = None,
    ) -> QueueUsers:
        """With random passwords, but for those that are known. Arguments and errors are those of `grants`."""
        granted, given = grants(run_uid, slip, others), known or {}
        passwords = {who: given.get(who) or secrets.token_urlsafe(PASSWORD_BYTES) for who in granted}
        return cls(run_uid, granted, passwords)

    def lines(self) -> list[str]:
        """Of an ACL file, or of the server's settings; passwords stand in them as SHA-256."""
        return [
            acl_line(user_name(self.run_uid, who), self.passwords[who], each)
            for who, each in self.granted.items()
        ]

    def url(self, who: str, server: str) -> str:
        """`server` (redis://host:port/0) with user and password: a secret."""
        return url_of(user_name(self.run_uid, who), self.passwords[who], server)


def url_of(user: str, password: str, server: str) -> str:
    """The server's URL with user and password. Raises UserError where it is none, or has them already."""
    at = urlsplit(server)
    if at.scheme not in ("redis", "rediss") or not at.hostname or "@" in at.netloc:
        raise UserError("expected redis://HOST:PORT or rediss://HOST:PORT, without user and password")
    netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{at.netloc}"
    return urlunsplit((at.scheme, netloc, at.path or "/0", at.query, ""))
