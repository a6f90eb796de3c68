"""The keys file: its form, its mistakes, its rereading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.access.keys import hash_of, new_key
from services.common.access.keys_file import WatchedKeys, read_keys
from services.common.errors import ConfigError

KEY = new_key()


def block(key: str = KEY, name: str = "a", more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nhash = "{hash_of(key)}"\n{more}\n'


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    aside = path.with_suffix(".part")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(path)
    return path


def test_every_field_is_read(tmp_path: Path) -> None:
    """Scopes, models, quota and end of a key; score and everything by default."""
    more = 'scopes = ["score", "admin"]\nmodels = ["hh"]\nrows_per_minute = 60\nexpires = 2027-01-31T01:00:00+01:00'
    second = new_key()
    table = read_keys(write(tmp_path / "keys.toml", block(more=more) + block(second, "b"))).table()
    first = table.key(KEY)
    assert first is not None
    assert first.identity.scopes == {"score", "admin"}
    assert first.identity.models == {"hh"}
    assert first.identity.rows_per_minute == 60
    assert first.expires == 1801353600.0
    plain = table.key(second)
    assert plain is not None
    assert (plain.identity.scopes, plain.identity.models) == (frozenset({"score"}), frozenset())
    assert plain.expires is None


def test_two_keys_of_one_name_stand_side_by_side(tmp_path: Path) -> None:
    """That is how a key is rotated; certificates have names of their own."""
    second = new_key()
    text = block() + block(second) + '[[certificates]]\nname = "learner"\nscopes = ["admin"]\n'
    table = read_keys(write(tmp_path / "keys.toml", text)).table()
    found = [table.key(key) for key in (KEY, second)]
    assert [known.identity.name for known in found if known] == ["a", "a"]
    assert table.certificate("learner") is not None


MISTAKES = [
    (f'[[keys]]\nname = "a"\nhash = "{KEY}"\n', ":3: keys.0.hash: expected the hash of a key"),
    (f'[[keys]]\nname = "a"\nhash = "sha256:{KEY[3:]}0"\n', "64 hex digits"),
    (block(more='scopes = ["scoer"]'), "scopes.0"),
    (block(name="a b"), ":2: keys.0.name"),
    (block(name=KEY), ":2: keys.0.name"),
    (block(more="rows_per_minute = -1"), "rows_per_minute"),
    (block(more="expires = 2027-01-31T00:00:00"), "with its offset"),
    (block(more='secret = "x"'), "there is no such field"),
    (block() + block(new_key(), more="rows_per_minute = 5"), "the same rows_per_minute"),
    ("[[keys]\n", "valid TOML"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_one_line_without_a_key(tmp_path: Path, text: str, words: str) -> None:
    """A wrong file is refused with its place and what was expected, and never with a key in that."""
    path = write(tmp_path / "keys.toml", text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path).table()
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert "\n" not in message
    assert KEY not in message


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Who can write it can let himself in. A group may read it: that is how Kubernetes mounts secrets."""
    for mode in (0o620, 0o602, 0o666):
        with pytest.raises(ConfigError, match="others may write it"):
            read_keys(write(tmp_path / "keys.toml", block(), mode))
    read_keys(write(tmp_path / "keys.toml", block(), 0o440))


def test_changes_count_from_the_next_look_on(tmp_path: Path) -> None:
    """A new key opens and a revoked one does not, without a restart; an empty file lets nobody in."""
    path = write(tmp_path / "keys.toml", block())
    keys, second = WatchedKeys(path), new_key()
    write(path, block() + block(second))
    assert keys.table().key(second) is not None
    write(path, block(second))
    assert keys.table().key(KEY) is None
    assert keys.table().key(second) is not None
    write(path, "")
    assert len(keys.table()) == 0


def test_a_change_in_place_of_the_same_size_is_seen(tmp_path: Path) -> None:
    """An editor may write into the very file; its time tells."""
    path = write(tmp_path / "keys.toml", block())
    keys, second = WatchedKeys(path), new_key()
    path.write_text(block(second))
    os.utime(path, ns=(1, 1))
    assert keys.table().key(second) is not None


@pytest.mark.parametrize("broken", ["[[keys]\n", None, "writable"])
def test_a_broken_file_keeps_the_old_keys_and_says_so_once(tmp_path: Path, broken: str | None) -> None:
    """Not well formed, gone, or open to writers: the old keys stay, one error line, until it is whole again."""
    path = write(tmp_path / "keys.toml", block())
    keys, second = WatchedKeys(path), new_key()
    if broken is None:
        path.unlink()
    elif broken == "writable":
        write(path, block(second), 0o666)
    else:
        write(path, broken)
    with capture_logs() as lines:
        for _ in range(3):
            assert keys.table().key(KEY) is not None
            assert keys.table().key(second) is None
    assert [line["log_level"] for line in lines] == ["error"]
    write(path, block(second))
    assert keys.table().key(second) is not None
