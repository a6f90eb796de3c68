"""TOML written is TOML read."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.local.toml import to_toml

SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text())
VALUES = st.recursive(
    st.one_of(SCALARS, st.lists(SCALARS)),
    lambda inner: st.one_of(
        st.dictionaries(st.text(), inner, max_size=4),
        st.lists(st.dictionaries(st.text(), inner, max_size=3), min_size=1, max_size=3),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
@example({"a\n": 1})
def test_round_trip(values: dict[str, object]) -> None:
    """Whatever is written is read back equal."""
    assert tomllib.loads(to_toml(values)) == values


def test_reads_well() -> None:
    """Keys first, then tables and arrays of tables with dotted names; None is left out."""
    written = to_toml({"a": {"b": {"x": [1, 2]}, "y": None}, "models": [{"name": "m"}], "z": 1.0})
    assert written == 'z = 1.0\n\n[a]\n\n[a.b]\nx = [1, 2]\n\n[[models]]\nname = "m"\n'


def test_what_toml_lacks_is_refused() -> None:
    """An object is no value."""
    with pytest.raises(TypeError, match="object cannot be written as TOML"):
        to_toml({"a": object()})
