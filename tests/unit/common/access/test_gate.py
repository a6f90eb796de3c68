"""Who gets in, what for, and what is said to the others."""

from __future__ import annotations

import pytest

from services.common.access import OPEN, Gate, Identity, current, entered
from services.common.access.keys import KeyTable, KnownCertificate, KnownKey, hash_of, new_key
from services.common.access.scopes import SCOPES
from services.common.errors import Forbidden, Overloaded, TooLarge, TrimtabError, Unauthenticated

SCORER, ADMIN, OLD = new_key(), new_key(), new_key()


def identity(name: str, *scopes: str, models: tuple[str, ...] = (), rows: int = 0) -> Identity:
    return Identity(name=name, scopes=frozenset(scopes), models=frozenset(models), rows_per_minute=rows)


TABLE = KeyTable(
    [
        KnownKey(hash=hash_of(SCORER), identity=identity("trainer", "score", models=("hh",), rows=60)),
        KnownKey(hash=hash_of(ADMIN), identity=identity("ops", "admin")),
        KnownKey(hash=hash_of(OLD), identity=identity("old", "score"), expires=1000.0),
    ],
    [KnownCertificate(identity=identity("learner", "score"), expires=1000.0)],
)


class Books:
    """A bookkeeper that remembers, and clocks that stand."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        self.wall = 999.0
        self.steady = 0.0

    def gate(self, keys: bool = True, certificates: bool = False) -> Gate:
        return Gate(
            (lambda: TABLE) if keys else None,
            certificates=certificates,
            wall_clock=lambda: self.wall,
            steady_clock=lambda: self.steady,
            bookkeeper=lambda reason, name: self.entries.append((reason, name)),
        )


def test_an_open_gate_lets_everybody_in() -> None:
    """Without keys and certificates nobody is asked, and a key that comes along does no harm."""
    gate = Gate()
    assert not gate.on
    permit = gate.permit("whatever", None, "admin")
    permit.check(model="hh", rows=10**9)
    assert permit.name == ""


REFUSED = [
    (None, None, "no_credentials", "an API key is needed"),
    ("", "", "no_credentials", "an API key is needed"),
    (new_key(), None, "unknown_key", "the API key is not known here"),
    ("tt_short", None, "unknown_key", "the API key is not known here"),
    (new_key(), "learner", "unknown_key", "the API key is not known here"),
    (None, "stranger", "unknown_certificate", "certificate stranger is not in the keys file"),
]


@pytest.mark.parametrize(("key", "name", "reason", "words"), REFUSED, ids=range(len(REFUSED)))
def test_strangers_are_refused_with_one_reason(
    key: str | None, name: str | None, reason: str, words: str
) -> None:
    """Nobody without a known key or certificate gets in; the books say why; the answer repeats no key."""
    books = Books()
    with pytest.raises(Unauthenticated, match=words) as caught:
        books.gate(certificates=True).identify(key, name)
    assert [entry[0] for entry in books.entries] == [reason]
    assert not key or key not in str(caught.value) + str(books.entries)


def test_a_key_goes_before_a_certificate() -> None:
    """Who shows both is who the key says."""
    gate = Books().gate(certificates=True)
    assert gate.identify(ADMIN, "learner").name == "ops"
    assert gate.identify(None, "learner").name == "learner"


def test_a_certificates_name_counts_only_where_tls_asks_for_it() -> None:
    """Without a client authority nobody has verified the name."""
    with pytest.raises(Unauthenticated):
        Books().gate(certificates=False).identify(None, "learner")


def test_certificates_alone_may_do_all_but_administer() -> None:
    """With a client authority and no keys file, whoever it signed gets in; admin needs to be written down."""
    gate = Books().gate(keys=False, certificates=True)
    for scope in set(SCOPES) - {"admin"}:
        assert gate.permit(None, "anybody", scope).name == "anybody"
    with pytest.raises(Forbidden):
        gate.permit(None, "anybody", "admin")
    with pytest.raises(Unauthenticated, match="client certificate with a common name"):
        gate.identify("tt_key", None)


def test_what_expires_ends_at_its_second() -> None:
    """A key and a certificate's entry hold until their second, and not in it."""
    books = Books()
    gate = books.gate(certificates=True)
    assert gate.identify(OLD, None).name == "old"
    assert gate.identify(None, "learner").name == "learner"
    books.wall = 1000.0
    for key, name in ((OLD, None), (None, "learner")):
        with pytest.raises(Unauthenticated, match="has expired"):
            gate.identify(key, name)
    assert books.entries == [("expired", "old"), ("expired", "learner")]


def test_scopes_do_not_imply_each_other() -> None:
    """A scorer cannot administer, and an administrator cannot score; both may do what needs no scope."""
    books = Books()
    gate = books.gate()
    gate.permit(SCORER, None, "score")
    gate.permit(ADMIN, None, "admin")
    for key, scope in ((SCORER, "admin"), (ADMIN, "score")):
        gate.permit(key, None, None)
        with pytest.raises(Forbidden, match=f"lacks the scope {scope}"):
            gate.permit(key, None, scope)
    assert books.entries == [("scope", "trainer"), ("scope", "ops")]


def test_models_outside_of_the_list_are_refused() -> None:
    """An allow-list names what may be used; an empty one names everything."""
    books = Books()
    trainer = books.gate().permit(SCORER, None, "score")
    trainer.check(model="hh", rows=1)
    assert trainer.may_use("hh")
    assert not trainer.may_use("secret")
    with pytest.raises(Forbidden, match="trainer may not use the model secret"):
        trainer.check(model="secret", rows=1)
    books.gate().permit(ADMIN, None, "admin").check(model="secret")
    assert books.entries == [("model", "trainer")]


def test_rows_are_counted_over_all_calls_of_a_name() -> None:
    """60 a minute over two permits; the refusal names the true time; a forbidden model costs no rows."""
    books = Books()
    gate = books.gate()
    first, second = (gate.permit(SCORER, None, "score") for _ in range(2))
    first.check(model="hh", rows=40)
    with pytest.raises(Forbidden):
        first.check(model="secret", rows=20)
    second.check(model="hh", rows=20)
    with pytest.raises(Overloaded) as caught:
        second.check(model="hh", rows=30)
    assert caught.value.retry_seconds == pytest.approx(30.0)
    books.steady = 30.0
    second.check(model="hh", rows=30)
    with pytest.raises(TooLarge):
        second.check(rows=61)
    assert [reason for reason, _ in books.entries] == ["model", "quota", "quota"]


def test_there_is_no_caller_outside_of_a_call() -> None:
    """Who forgot the guard lets nobody in; inside, the permit is the caller's, and gone afterwards."""
    with pytest.raises(Unauthenticated):
        current()
    with entered(OPEN):
        assert current() is OPEN
        permit = Books().gate().permit(SCORER, None, "score")
        with entered(permit):
            assert current().name == "trainer"
        assert current() is OPEN
    with pytest.raises(TrimtabError):
        current()
