"""The drawn page."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from orchestrator.simulation.report import thinned, write_report
from orchestrator.simulation.runs import scenario_of, simulate_all
from services.common.errors import InvalidInput


def test_the_page_names_every_scaler_and_draws_every_curve(tmp_path: Path) -> None:
    """Three roles, backlog, idle share, cost: six pictures, none empty; no script, no request."""
    scenario, results = simulate_all("bursts", 3, 5400.0)
    text = write_report(tmp_path / "report.html", scenario, results).read_text()
    assert text.count('<svg class="chart"') == 6
    for result in results:
        assert result.scaler in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    for piece in text.split("<svg ")[1:]:
        ET.fromstring("<svg " + piece.split("</svg>")[0] + "</svg>")  # noqa: S314


def test_long_curves_are_averaged() -> None:
    """A day of ticks becomes some hundred points, with the mean kept."""
    points = thinned([float(x) for x in range(5760)], [float(x % 2) for x in range(5760)])
    assert len(points) == 480
    assert all(y == 0.5 for _, y in points)


def test_an_unknown_shape_is_told() -> None:
    """With the names that there are."""
    with pytest.raises(InvalidInput, match="steady"):
        scenario_of("stormy", 1, 3600.0)
