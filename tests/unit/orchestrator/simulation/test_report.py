"""The drawn page."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from orchestrator.simulation.optimum import clairvoyant
from orchestrator.simulation.report import _running, sum_cards, thinned, write_report
from orchestrator.simulation.runs import scenario_of, simulate_all
from services.common.errors import InvalidInput


def test_the_page_names_every_scaler_and_draws_every_curve(tmp_path: Path) -> None:
    """Three roles, three others, cost, waiting, backlog: nine pictures, none empty; no script, no request."""
    scenario, results = simulate_all("bursts", 3, 5400.0)
    optimum = clairvoyant(scenario, results[0])
    text = write_report(tmp_path / "report.html", scenario, results, optimum).read_text()
    assert text.count('<svg class="chart"') == 9
    assert f"{optimum.cost_per_thousand:.2f}" in text
    for result in results:
        assert result.scaler in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    for piece in text.split("<svg ")[1:]:
        ET.fromstring("<svg " + piece.split("</svg>")[0] + "</svg>")  # noqa: S314


def test_what_is_summed_up_ends_at_the_figures_of_the_table() -> None:
    """The last point of cost and of waiting is what the run counted, less the last tick."""
    scenario, results = simulate_all("bursts", 3, 5400.0)
    cost, waited = sum_cards(scenario, results)
    assert [label for label, _ in cost.legend] == [one.scaler for one in results]
    ours = results[0]
    counted = [at > scenario.warm_seconds for at in ours.times]
    assert _running(ours.cost, counted, 15 / 3600)[-1] == pytest.approx(ours.roles_cost, rel=0.03)
    minutes = _running(ours.idle, counted, 15 / 60)[-1]
    assert minutes == pytest.approx(ours.waited_seconds / 60, rel=0.05)
    assert waited.title == "Waiting so far"


def test_long_curves_are_averaged() -> None:
    """A day of ticks becomes some hundred points, with the mean kept."""
    points = thinned([float(x) for x in range(5760)], [float(x % 2) for x in range(5760)])
    assert len(points) == 480
    assert all(y == 0.5 for _, y in points)


def test_an_unknown_shape_is_told() -> None:
    """With the names that there are."""
    with pytest.raises(InvalidInput, match="steady"):
        scenario_of("stormy", 1, 3600.0)
