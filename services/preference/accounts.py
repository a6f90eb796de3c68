"""Owns people: their personal links, roles and sessions, by hashes alone. Inside a transaction; knows no wire.

A link's token and a session's are 256 random bits; what is kept is their SHA-256 (why a fast hash:
services/common/access/README.md).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from services.common.errors import AlreadyExists, NotFound, Unauthenticated
from services.common.validation import require
from services.preference.domain import check_annotator
from services.preference.tables import AnnotatorRow, PersonRow, SessionRow

Role = Literal["annotator", "owner"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "tp_"
_MAX_TOKEN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who signed in; an owner may do what an annotator may, and see everything. An empty campaign means all."""

    name: str
    role: Role
    campaign: str = ""
    link: bool = True
    expires: float | None = None


def new_person(
    session: Session,
    person: Person,
    *,
    now: float,
    renew: bool = False,
) -> str:
    """Make someone known; the token of their link, which is nowhere else. AlreadyExists unless `renew`.

    `renew` gives a new link and role in place of the old ones, and ends the sessions begun with it. AlreadyExists for
    a built-in annotator's name: both would answer under it.
    """
    check_annotator(person.name)
    require(person.role in ROLES, "role", f"expected {' or '.join(ROLES)}")
    fits = person.role != "owner" or not person.campaign
    require(fits, "campaign", "an owner sees and exports all of them")
    judge = session.get(AnnotatorRow, person.name)
    if judge is not None and judge.rule_digest:
        raise AlreadyExists(
            f"{person.name} is a built-in annotator ({judge.rule}): give the person another name"
        )
    row = session.get(PersonRow, person.name)
    if row is not None and not renew:
        raise AlreadyExists(f"{person.name} has a link already; --renew replaces it")
    token = PREFIX + secrets.token_urlsafe(32)
    if row is None:
        row = PersonRow(name=person.name, created_at=now)
        session.add(row)
    row.role, row.campaign = person.role, person.campaign
    row.link_hash, row.link_expires = token_hash(token), person.expires
    session.execute(delete(SessionRow).where(SessionRow.name == person.name))
    return token


def revoke(session: Session, name: str) -> None:
    """Take someone's link and sessions away; their answers stay. NotFound for a stranger."""
    row = session.get(PersonRow, name)
    if row is None:
        raise NotFound(f"{name}: there is nobody of that name")
    row.link_hash = None
    session.execute(delete(SessionRow).where(SessionRow.name == name))


def everybody(session: Session) -> Sequence[Person]:
    """All people, by name."""
    return [_person(row) for row in session.scalars(select(PersonRow).order_by(PersonRow.name))]


def invited(session: Session, token: str, *, now: float) -> Person:
    """Whose link that is. Unauthenticated for no valid link."""
    return _person(_invited(session, select(PersonRow), token, now))


def _invited(session: Session, people: Select[PersonRow], token: str, now: float) -> PersonRow:
    row = session.scalar(people.where(PersonRow.link_hash == token_hash(token)))
    if row is None or (row.link_expires is not None and row.link_expires <= now):
        raise Unauthenticated("this link is not valid (any more): ask for a new one")
    return row


def sign_in(session: Session, token: str, *, now: float, session_seconds: float) -> tuple[Person, str]:
    """Whose link that is, and the token of a new session. Unauthenticated for no valid link."""
    # Locked, so that who revokes the link at this moment ends this session too.
    person = _person(_invited(session, select(PersonRow).with_for_update(), token, now))
    session.execute(delete(SessionRow).where(SessionRow.expires <= now))
    secret = secrets.token_urlsafe(32)
    session.add(SessionRow(token_hash=token_hash(secret), name=person.name, expires=now + session_seconds))
    return person, secret


def who(session: Session, secret: str, *, now: float) -> Person | None:
    """Whose session that is; None where it is nobody's."""
    row = session.scalar(
        select(PersonRow)
        .join(SessionRow, SessionRow.name == PersonRow.name)
        .where(SessionRow.token_hash == token_hash(secret), SessionRow.expires > now)
    )
    return None if row is None else _person(row)


def sign_out(session: Session, secret: str) -> None:
    """End one session."""
    session.execute(delete(SessionRow).where(SessionRow.token_hash == token_hash(secret)))


def token_hash(token: str) -> str:
    """What is kept of a token; what is too long to be one is not hashed at length."""
    return "sha256:" + hashlib.sha256(token[:_MAX_TOKEN].encode(errors="replace")).hexdigest()


def _person(row: PersonRow) -> Person:
    return Person(
        name=row.name,
        role=cast("Role", row.role),
        campaign=row.campaign,
        link=row.link_hash is not None,
        expires=row.link_expires,
    )
