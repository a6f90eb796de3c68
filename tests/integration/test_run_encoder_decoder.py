"""A whole run of an encoder-decoder: generated, scored, learnt from, published, taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.local.in_process import run_in_process
from tests.fakes.small_runs import make_files, rows_of, small_spec, without_times
from tests.fakes.tiny_models import make_tiny_t5
from tests.fakes.tiny_runs import loaded_from


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a tiny T5."""
    folder = make_files(tmp_path_factory.mktemp("files"))
    make_tiny_t5(folder / "model")
    return folder


def test_all_parties_agree_and_a_resume_is_exact(files: Path, tmp_path: Path) -> None:
    """Policy, reference and learner give the same log-probs; interrupted and resumed the numbers are the same."""
    spec = small_spec(files)
    assert run_in_process(spec, tmp_path / "one") == 0
    rows = rows_of(tmp_path / "one")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["objective/kl"] != 0
    # The engine's log-probs against the learner's, under the weights that were published for the step.
    assert max(row["sampling/logprob_difference"] for row in rows) < 1e-5
    run_in_process(small_spec(files, "steps=2"), tmp_path / "two")
    run_in_process(spec, tmp_path / "two")
    assert without_times(rows_of(tmp_path / "two")) == without_times(rows)
    model = loaded_from(tmp_path / "two" / "checkpoints" / "step-000004" / "model")
    assert model.facts.architecture == "encoder_decoder"
