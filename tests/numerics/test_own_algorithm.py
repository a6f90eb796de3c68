"""The README's example of an algorithm of one's own is carried out as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidInput
from services.common.spec.algorithms import OtherSpec
from services.learner.algorithms import registry
from tests.numerics.batches import loss_at, made, rollouts, targets

README = Path(registry.__file__).with_name("README.md")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """The code block, and its class in the registry."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code = found[1]
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, str(README), "exec"), names)  # noqa: S102 - our own README
    monkeypatch.setitem(registry.ALGORITHMS, "reinforce", names["Reinforce"])
    return code


def test_it_has_at_most_forty_lines(example: str) -> None:
    """An algorithm is small."""
    assert len(example.splitlines()) <= 40


def test_its_numbers(example: str) -> None:
    """Scores 1 and 4, scale 0.5: advantages -0.75 and 0.75; loss mean(-A log pi) over three tokens."""
    algorithm = made(OtherSpec(name="reinforce", options={"scale": 0.5}))
    batch = rollouts([[1.0, 1.0], [1.0, 0.0]], old=[[-1.0, -2.0], [-3.0, 0.0]], scores=[1.0, 4.0])
    found = algorithm.targets(batch, 0.0)
    assert found.advantages.tolist() == [[-0.75, -0.75], [0.75, 0.0]]
    loss = loss_at(algorithm, batch, targets(batch, found.advantages.tolist()), [[1.0, 1.0], [1.0, 1.0]])
    assert loss.total.item() == pytest.approx((-0.75 - 1.5 + 2.25) / 3)


def test_a_name_that_is_not_there_is_refused() -> None:
    """One line says what there is."""
    with pytest.raises(InvalidInput, match=r"algorithm.name = nobody: expected ppo, grpo"):
        made(OtherSpec(name="nobody"))
