"""The configuration: defaults that run, mistakes named with their line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from services.common.errors import ConfigError
from services.common.spec.load import load_toml
from services.preference.config import PreferenceConfig


def load(tmp_path: Path, text: str) -> PreferenceConfig:
    path = tmp_path / "preference.toml"
    path.write_text(text)
    return load_toml(path, PreferenceConfig)


def test_an_empty_file_is_a_service_for_people(tmp_path: Path) -> None:
    """Without a word: a database file beside it, no built-in annotator, Elo."""
    config = load(tmp_path, "")
    assert config.database_url.get_secret_value() == "sqlite:///preference.db"
    assert config.annotators == ()
    assert config.rating.method().kind == "elo"


def test_everything_can_be_said(tmp_path: Path) -> None:
    """Annotators and ratings as the README writes them; a prior of 0 is none."""
    config = load(
        tmp_path,
        """
        lease_seconds = 30
        [rating]
        kind = "bradley-terry"
        prior_deviation = 0
        [[annotators]]
        name = "auto"
        rule = "length:target=40"
        margin = 0.05
        """,
    )
    assert config.rating.method().prior_deviation == math.inf
    assert config.annotators[0].margin == 0.05


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('database_url = "preference.db"', "expected a database URL"),
        ('database_url = "sqlite:///:memory:"', "must outlive the process"),
        ('[[annotators]]\nname = "a"\nrule = "lenght"', "'lenght' is not known"),
        ('[[annotators]]\nname = "a"\nrule = "length"\n' * 2, "names that differ"),
        ('[queue]\nurl = "redis://localhost"\nrun_uid = "u"', "no \\[queue\\]"),
        ("lease_seconds = 0", "greater than 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    """Each mistake is a ConfigError in one line that says what was expected."""
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
