"""What every test of access control begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.certificates import Authority
from tests.integration.access.guarded import (
    Keys,
)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)
