"""The benchmark of reward models: its split and its paired test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import reward_model
from benchmarks.reward_model import SETS, Kept, Outcome, Trained, p_worse, right, rows_of, split
from services.learner.jobs.comparisons import Compared, Win


def prompt(name: str, group: str) -> Compared:
    return Compared(
        messages=(("user", name),), answers=("a", "b", "c"), wins=(Win(0, 1), Win(0, 2)), group=group
    )


def test_the_split_is_by_group_and_always_the_same() -> None:
    """At least so many pairs to train on, whole trees on either side."""
    prompts = [prompt(str(at), f"tree {at // 2}") for at in range(20)]
    fit, held = split(prompts, 22)
    assert sum(len(one.pairs()) for one in fit) == 24
    assert len(fit) + len(held) == 20
    assert {one.group for one in fit}.isdisjoint(one.group for one in held)
    assert split(prompts, 22) == (fit, held)


def test_rows_are_trls_pairs_in_the_order_of_the_margins() -> None:
    """One row for each pair, prompt by prompt, in the conversational form."""
    rows = rows_of([prompt("x", "g")])
    assert [row["rejected"][0]["content"] for row in rows] == ["b", "c"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "x"}]


def test_the_paired_test_tells_worse_from_chance() -> None:
    """The same answers: 1. Wrong where the other one is right, on 20 prompts: 2^-20. On one prompt: no evidence."""
    names = [str(at) for at in range(20)]
    assert p_worse([1.0] * 20, [1.0] * 20, names) == 1.0
    assert p_worse([0.0] * 20, [1.0] * 20, names) < 0.001
    assert p_worse([1.0] * 20, [0.0] * 20, names) == pytest.approx(1.0, abs=1e-3)
    assert p_worse([0.0] * 20, [1.0] * 20, ["one"] * 20) == pytest.approx(0.5, abs=0.05)


def test_figures_are_over_all_pairs_and_seeds() -> None:
    """A pair is right by the share of seeds; both sets together weigh by their pairs, times by their sums."""
    ours = right(
        [Trained(seconds=1, steps=1, margins=[1.0, -1.0]), Trained(seconds=1, steps=1, margins=[1.0, 1.0])]
    )
    assert ours == [1.0, 0.5]
    one = Outcome(
        seconds=2,
        seconds_trl=6,
        ours=ours,
        trl=[0.5, 0.5],
        longer=[0.0, 1.0],
        matched=[True, False],
        groups=["a", "b"],
    )
    other = Outcome(
        seconds=2, seconds_trl=4, ours=[0.0], trl=[0.0], longer=[1.0], matched=[False], groups=["c"]
    )
    both = (one + other).figures()
    assert (both["speedup_vs_trl"], both["held_out_pairs"]) == (2.5, 3)
    assert (both["accuracy"], both["accuracy_length_matched"]) == (0.5, 1.0)
    assert both["accuracy_trl_length_matched"] == 0.5
    assert np.isnan(other.figures("x_")["x_accuracy_length_matched"])


def test_a_seed_that_was_run_is_taken_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its trainings, to the last digit; nothing of another seed, data set, rate or precision."""
    kept, (hh, oasst) = Kept(tmp_path / "runs.jsonl", "float32"), SETS
    found = {
        way: Trained(seconds=1 / 3, steps=88, margins=[0.1 + 0.2, -1e-9, 0.0]) for way in ("ours", "TRL")
    }
    assert kept.find(hh, 1) == {}
    kept.add(hh, 1, found)
    kept.add(oasst, 2, found)
    assert kept.find(hh, 1) == found
    assert kept.find(hh, 2) == kept.find(oasst, 1) == {}
    assert Kept(kept.file, "bfloat16").find(hh, 1) == {}
    monkeypatch.setattr(reward_model, "SETTINGS", reward_model.SETTINGS | {"learning_rate": 1e-5})
    assert kept.find(hh, 1) == {}


def test_nothing_is_kept_unasked() -> None:
    """Without a file every training is run anew."""
    kept = Kept(None, "float32")
    kept.add(SETS[0], 1, {})
    assert kept.find(SETS[0], 1) == {}
