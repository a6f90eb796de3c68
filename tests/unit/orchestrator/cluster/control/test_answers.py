"""From the answers of a run's services to figures."""

from __future__ import annotations

import math

import pytest
from prometheus_client import generate_latest

from orchestrator.cluster.control.answers import learner_figures, pod_figures
from orchestrator.cluster.kinds.status import CheckpointStatus
from services.common.stage_metrics import DRAINING, StageMetrics
from trimtab.common.v1 import common_pb2 as common
from trimtab.learner.v1 import learner_pb2 as wire

PAGE = """\
# HELP trimtab_stage_busy_seconds_total Slot-seconds spent on groups.
trimtab_stage_busy_seconds_total{stage="reward/hh"} 12.5
trimtab_stage_groups_total{outcome="done",stage="reward/hh"} 40.0
trimtab_stage_groups_total{outcome="failed",stage="reward/hh"} 3.0
trimtab_stage_held_groups{stage="reward/hh"} 2.0
trimtab_reward_model_info{digest="blake3:ab",kind="model",model="hh"} 1.0
"""


def test_a_workers_page() -> None:
    """What failed is work, and no completion."""
    figures = pod_figures(PAGE)
    assert figures is not None
    assert (figures.busy_seconds, figures.groups, figures.held, figures.revision) == (
        12.5,
        40,
        2,
        "blake3:ab",
    )


def test_what_drains_says_so() -> None:
    """Only together with nothing in hand: a gauge without the other is no leave to remove anything."""
    for held, draining, empty in ((0, 1, True), (2, 1, False), (0, 0, False)):
        page = PAGE.replace('groups{stage="reward/hh"} 2.0', f'groups{{stage="reward/hh"}} {held}.0')
        figures = pod_figures(f'{page}trimtab_stage_draining{{stage="reward/hh"}} {draining}.0\n')
        assert figures is not None
        assert (figures.held, figures.draining) == (held, empty)


def test_another_page_is_none() -> None:
    """A service that works no stage, or no page at all."""
    assert pod_figures("python_info 1.0\n") is pod_figures("") is pod_figures("<html>") is None


def test_the_page_of_our_own_worker_is_understood() -> None:
    """The names here and there are the same."""
    DRAINING.clear()  # the gauges are the process's, whatever ran in it before
    metrics = StageMetrics("test")
    before = pod_figures(generate_latest().decode())
    metrics.took(3)
    metrics.worked(3, 2.0)
    for outcome in ("done", "done", "unfinished"):
        metrics.left(outcome)
    after = pod_figures(generate_latest().decode())
    assert before is not None
    assert after is not None
    assert after.busy_seconds - before.busy_seconds == pytest.approx(6.0)
    assert (after.groups - before.groups, after.held - before.held) == (2, 3)
    metrics.took(0)
    metrics.draining(True)
    empty = pod_figures(generate_latest().decode())
    metrics.draining(False)
    assert empty is not None
    assert (before.draining, empty.draining) == (False, True)


def test_a_learners_answer() -> None:
    """Work is update and publication; the rest of the step is waiting."""
    answer = wire.GetRunStatusResponse(
        step=7,
        total_steps=32,
        version=common.WeightsVersion(epoch=2, step=7),
        rollouts=wire.RolloutCounts(admitted=100, trained=80, stale=3, failed=1, in_flight=16),
        metrics={
            "time/step": 10.0,
            "time/update": 5.0,
            "time/publish": 1.0,
            "objective/scores": 0.25,
            "objective/kl": 1.5,
        },
        last_checkpoint="/storage/runs/a/checkpoints/step-000006",
    )
    figures = learner_figures(answer, paused=False)
    assert (figures.step, figures.steps, figures.version, figures.epoch) == (7, 32, "2.7", 2)
    assert (figures.reward, figures.kl) == (0.25, 1.5)
    assert figures.step_seconds == 6.0
    assert figures.idle_share == pytest.approx(0.4)
    assert figures.last_checkpoint == CheckpointStatus(
        step=6, epoch=2, path="/storage/runs/a/checkpoints/step-000006"
    )
    assert figures.rollouts is not None
    assert (figures.rollouts.trained, figures.rollouts.in_flight) == (80, 16)


def test_a_learner_before_its_first_step() -> None:
    """Nothing is made up."""
    figures = learner_figures(wire.GetRunStatusResponse(total_steps=8), paused=True)
    assert (figures.step_seconds, figures.idle_share, figures.reward) == (None, None, None)
    assert (figures.last_checkpoint, figures.version, figures.paused) == (None, "", True)


def test_a_figure_that_is_no_number_is_none() -> None:
    """Of a learner whose loss has diverged, and on a worker's page: the others count."""
    metrics = {"objective/kl": math.nan, "objective/scores": math.inf, "time/step": 2.0, "time/update": 1.0}
    figures = learner_figures(wire.GetRunStatusResponse(step=3, metrics=metrics), paused=False)
    assert (figures.kl, figures.reward, figures.idle_share) == (None, None, 0.5)
    page = pod_figures(PAGE + 'trimtab_stage_held_groups{stage="reward/b"} NaN\n')
    assert page is not None
    assert page.held == 2
