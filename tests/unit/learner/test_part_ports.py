"""Where each process of a learner serves its part of the weights."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.learner.config import LearnerConfig

RUN = {"model": {"path": "m"}, "data": {"prompts": "p.jsonl"}, "reward_model": "rule:sentiment"}


def config(**server: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"run": RUN, "out": "out", "processes": 3, "server": server})


def test_beside_the_first_ones_port_but_on_loopback_anywhere() -> None:
    """A firewall can be told the one; on loopback the neighbouring port may be somebody's."""
    assert config(host="10.0.0.1", port=50054, health_port=50154).part_port(2) == 50056
    assert config(host="127.0.0.1", port=50054, health_port=50055).part_port(2) == 0
    assert config(host="10.0.0.1", port=0).part_port(2) == 0


@pytest.mark.parametrize("name", ["health_port", "metrics_port"])
def test_ports_that_would_meet_are_refused(name: str) -> None:
    """At start, and not by the process that finds its port taken."""
    with pytest.raises(ValidationError, match=f"server.{name}: at 50056 another process"):
        config(host="10.0.0.1", port=50054, **{name: 50056})
