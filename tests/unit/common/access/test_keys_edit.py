"""Changes to a keys file, as text and on disk."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.access.keys import hash_of, id_of, new_key
from services.common.access.keys_edit import added, edit, parse_keys, revoked, with_key, without_keys
from services.common.access.keys_file import KeyEntry
from services.common.errors import ConfigError, NotFound

TEXT = """# Keys of the reward service.

# The trainers.
[[keys]]
name = "a"
hash = "sha256:{}"
models = [
  "hh",   # the first
]

# Of Monday.
[[keys]]
name = "b"
hash = "sha256:{}"
[[certificates]]
name = "a"

[[keys]]
name = "a"
hash = "sha256:{}"
""".format("1" * 64, "2" * 64, "3" * 64)


def entry(name: str = "c", **more: object) -> KeyEntry:
    return KeyEntry.model_validate({"name": name, "hash": hash_of(new_key()), **more})


def test_an_added_key_is_read_back_as_it_was() -> None:
    """Every field survives; what stood in the file before stays to the letter."""
    full = entry(
        scopes=("score", "admin"),
        models=("hh", 'a "b"'),
        rows_per_minute=5,
        expires=datetime(2027, 1, 31, 12, 30, tzinfo=UTC),
    )
    text = with_key(TEXT, full)
    assert text.startswith(TEXT)
    assert parse_keys(text).keys[-1] == full
    assert parse_keys(with_key("", entry())).keys[0].models == ()


def test_revoked_keys_go_with_their_comments_and_all_else_stays() -> None:
    """All keys of the name go, the certificate of that name and others' comments stay."""
    text, removed = without_keys(TEXT, lambda each: each.name == "a")
    assert removed == 2
    assert [each.name for each in parse_keys(text).keys] == ["b"]
    assert [each.name for each in parse_keys(text).certificates] == ["a"]
    assert "# Keys of the reward service." in text
    assert "# Of Monday." in text
    assert "# The trainers." not in text


def test_one_key_of_two_goes_by_its_id() -> None:
    """That ends a rotation."""
    text = revoked("a", id_of("sha256:" + "3" * 64))(TEXT)
    assert [each.hash[-1] for each in parse_keys(text).keys] == ["1", "2"]
    for name, key_id in (("nobody", ""), ("a", "000000000000")):
        with pytest.raises(NotFound, match=f"there is no key {name}"):
            revoked(name, key_id)(TEXT)


def test_a_form_that_is_not_understood_is_left_alone() -> None:
    """Keys written as inline tables are valid, and not cut by guesswork."""
    text = f'keys = [{{ name = "a", hash = "sha256:{"1" * 64}" }}]\n'
    with pytest.raises(ConfigError, match="edit it by hand"):
        revoked("a")(text)
    with pytest.raises(ConfigError):
        parse_keys(with_key(text, entry()))


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    """0600 whatever the umask; nothing else is left in the folder."""
    before = os.umask(0)
    try:
        edit(tmp_path / "keys.toml", added(entry()))
    finally:
        os.umask(before)
    assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]


def test_an_existing_file_keeps_its_groups_right_to_read(tmp_path: Path) -> None:
    """The service may be of another user: an edit must not lock it out, nor leave a file open to all."""
    path = tmp_path / "keys.toml"
    edit(path, added(entry()))
    for mode, after in ((0o640, 0o640), (0o666, 0o640), (0o400, 0o600)):
        path.chmod(mode)
        edit(path, added(entry()))
        assert path.stat().st_mode & 0o777 == after


def test_a_refused_change_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    """A broken file is not made worse, and a link stays a link."""
    path, link = tmp_path / "real.toml", tmp_path / "keys.toml"
    link.symlink_to(path)
    edit(link, added(entry("a")))
    content = path.read_text()
    with pytest.raises(NotFound):
        edit(link, revoked("nobody"))
    with pytest.raises(ConfigError, match="same rows_per_minute"):
        edit(link, added(entry("a", rows_per_minute=7)))
    assert path.read_text() == content
    assert link.is_symlink()
    with pytest.raises(ConfigError):
        edit(tmp_path / "missing" / "keys.toml", added(entry()))


def test_edits_at_once_lose_nothing(tmp_path: Path) -> None:
    """Eight at a time, eight keys."""
    path = tmp_path / "keys.toml"
    threads = [threading.Thread(target=edit, args=(path, added(entry(f"k{n}")))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.name for each in parse_keys(path.read_text()).keys} == {f"k{n}" for n in range(8)}
