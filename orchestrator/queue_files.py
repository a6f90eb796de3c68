"""The users of a queue server that somebody else runs, as files: `trimtab queue users`. Knows no server.

OUT/users.acl         lines for the server, hashes alone
OUT/urls/<service>    the URL of one service, with its user and password
OUT/admin             the URL of who may do everything; not where the server is shared
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.local.layout import write_private
from orchestrator.queue_users import PASSWORD_BYTES, QueueUsers, url_of
from services.common.errors import UserError
from services.common.stages.rights import grants

ADMIN = "admin"


def write_users(run_uid: str, server: str, out: Path, slip: Sequence[str], *, shared: bool) -> list[str]:
    """Write the files; the services that have a user. Passwords that stand there are kept. Raises UserError."""
    urls = out / "urls"
    known = {who: password for who in grants(run_uid, slip) if (password := _password(urls / _file(who)))}
    users = QueueUsers.draw(run_uid, slip, known=known)
    written = {urls / _file(who): users.url(who, server) for who in users.passwords}
    lines = users.lines()
    if not shared:
        password = _password(out / ADMIN) or secrets.token_urlsafe(PASSWORD_BYTES)
        hashed = hashlib.sha256(password.encode()).hexdigest()
        lines = ["user default off", f"user {ADMIN} reset on #{hashed} ~* &* +@all", *lines]
        written[out / ADMIN] = url_of(ADMIN, password, server)
    try:
        urls.mkdir(parents=True, exist_ok=True)
        for folder in (out, urls):
            folder.chmod(0o700)
        for path, url in written.items():
            write_private(path, url)
        write_private(out / "users.acl", "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None
    return [_file(who) for who in users.passwords]


def _file(who: str) -> str:
    return who.replace("/", "-")


def _password(path: Path) -> str:
    """Of a URL that was written before; empty: there is none."""
    try:
        return unquote(urlsplit(path.read_text(encoding="utf-8").strip()).password or "")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no URL: {error}") from None
