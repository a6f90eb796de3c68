"""What `trimtab operator` is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.operator.config import OperatorConfig
from orchestrator.cluster.render import RenderOptions
from services.common.errors import ConfigError
from services.common.spec.load import load_toml


def test_without_a_file_it_is_a_release_in_its_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderer's own defaults, and the namespace that the pod is told."""
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    config = load_toml(None, OperatorConfig)
    assert config.home() == "trimtab-system"
    assert config.render.options(config.home()) == RenderOptions()
    monkeypatch.setenv("POD_NAMESPACE", "elsewhere")
    assert config.home() == "elsewhere"
    assert config.render.options(config.home()).operator_namespace == "elsewhere"


def test_a_file_with_overrides(tmp_path: Path) -> None:
    """An image that is given is over the release's; others stay."""
    path = tmp_path / "operator.toml"
    path.write_text('namespaces = ["a"]\n[render]\nmonitoring_namespace = ""\nimages = {policy = "p:2"}\n')
    config = load_toml(path, OperatorConfig, ["workers=8", "lease.name=mine"])
    options = config.render.options("x")
    assert (config.namespaces, config.workers, config.lease.name) == (("a",), 8, "mine")
    assert (options.images["policy"], options.monitoring_namespace) == ("p:2", None)
    assert options.images["reward"] == RenderOptions().images["reward"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("workers=0", "workers"),
        ("lease.renew_seconds=20", "expected retry_seconds < renew_seconds < lease_seconds"),
        ('namespaces=["A_b"]', "namespaces"),
        ("nonsense=1", "nonsense: there is no such field"),
    ],
)
def test_mistakes_name_the_field(override: str, told: str) -> None:
    """One line."""
    with pytest.raises(ConfigError, match=told):
        load_toml(None, OperatorConfig, [override])


def test_no_two_processes_have_one_name() -> None:
    """Containers share their process id (1) and, on the host's network, their host name: both would lead at once."""
    script = (
        "from orchestrator.cluster.operator.config import OperatorConfig as C; print(C().who(), C().who())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert all(first == second for first, second in told)
    assert told[0] != told[1]
    assert OperatorConfig(identity="mine").who() == "mine"
