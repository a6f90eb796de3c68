"""A step on one, two and four processes is one step; what some processes have written, any number goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.common.spec.run import RunSpec
from services.learner.checkpoints import Checkpoints
from services.learner.distributed.shares import rounds, shares
from services.learner.pretraining import load_texts
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.loading import serving_state
from services.models.manifest import entries_of
from tests.fakes.learner_groups import go_on, in_group, steps, written
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

SCORES = [1.0, -1.0, 0.5, 2.0, -0.5, 0.0, 1.5]
CLOCK = {"time/update"}
CLOSE = 1e-5
# Several processes on few cores, which others use too.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    make_tiny_causal(folder / "tiny", layers=2)
    (folder / "texts.jsonl").write_text(
        '{"text": "ab"}\n{"text": "a longer text than that"}\n{"text": "third"}\n'
    )
    return folder


@pytest.fixture(scope="module")
def batches(folder: Path) -> list[list[Sample]]:
    """Seven ragged completions, then three: fewer than there may be processes."""
    loaded = loaded_from(folder / "tiny")
    samples = samples_from(loaded, random_pairs(len(SCORES)), SCORES, noise=0.3)
    return [samples, samples[4:]]


def spec_of(folder: Path, algorithm: dict[str, Any], **optimiser: Any) -> RunSpec:
    texts = {"texts": str(folder / "texts.jsonl")} if "ptx_coefficient" in algorithm else {}
    return run_spec(
        folder / "tiny",
        algorithm=algorithm,
        data={"prompts": "none.jsonl", **texts},
        # Few tokens, so that processes have several rounds, and not all equally many. Adam divides a gradient by its
        # own size: with its usual eps one that is rounding alone moves a weight by the rate, whoever computes it.
        optimiser={"learning_rate": 1e-3, "eps": 1e-6, "micro_batch_tokens": 24, **optimiser},
        rollout={"slip": ("policy", "reference", "reward")},
    )


@pytest.fixture(scope="module")
def specs(folder: Path) -> dict[str, RunSpec]:
    """A single update; several with a value head; a critic of its own, texts beside, frozen layers; much clipping."""
    return {
        "single": spec_of(folder, {"kind": "ppo", "epochs": 1, "entropy_coefficient": 0.01}),
        "several": spec_of(folder, {"kind": "ppo", "epochs": 2, "minibatches": 2}),
        "critic and texts": spec_of(
            folder,
            {
                "kind": "ppo",
                "epochs": 1,
                "minibatches": 2,
                "value_model": "policy",
                "ptx_coefficient": 0.5,
                "ptx_rows": 2,
            },
            frozen_layers=1,
        ),
        "clipped": spec_of(
            folder, {"kind": "rloo", "num_generations": 2}, max_grad_norm=1e-3, weight_decay=0.1
        ),
    }


def alone(spec: RunSpec) -> Trainer:
    loaded = loaded_from(Path(spec.model.path), spec.model.dtype)
    return Trainer(loaded, spec, load_texts(spec.data, loaded.tokenizer))


def stepped(trainer: Trainer, batches: list[list[Sample]]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    return [trainer.step(batch) for batch in batches], trainer.serving_weights()


def assert_same(one: Any, two: Any) -> None:
    """Every figure of every step, the gradient norm and the loss among them, and every weight afterwards."""
    for these, those in zip(one[0], two[0], strict=True):
        assert these.keys() == those.keys()
        for name in these.keys() - CLOCK:
            assert these[name] == pytest.approx(those[name], abs=CLOSE, rel=CLOSE), name
    assert list(one[1]) == list(two[1])
    for name in one[1]:
        torch.testing.assert_close(one[1][name], two[1][name], atol=CLOSE, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("processes", "names"),
    [(2, ["single", "several", "critic and texts", "clipped"]), (4, ["several"])],
    ids=["two", "four"],
)
def test_any_number_of_processes_gives_the_same_steps(
    tmp_path: Path, specs: dict[str, RunSpec], batches: list[list[Sample]], processes: int, names: list[str]
) -> None:
    """Losses, gradient norm, every other figure and the new weights are one process' to 1e-5, step after step."""
    found = in_group(processes, {name: specs[name] for name in names}, tmp_path, steps, batches)
    for name in names:
        assert_same(found[name], stepped(alone(specs[name]), batches))


def test_processes_begin_with_the_masters_of_one(tmp_path: Path, folder: Path) -> None:
    """Of bfloat16 weights: each where it begins in its rounding cell, bit for bit, in the layers and beside them."""
    spec = spec_of(folder, {"kind": "ppo", "value_model": "policy"})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "bfloat16"})})
    expected = alone(spec).state_dict()["optimiser"]["masters"]
    path = in_group(2, {"half": spec}, tmp_path, written, tmp_path / "half")["half"]
    found = Checkpoints(tmp_path / "half", keep=1).read(path)[0]["optimiser"]["masters"]
    assert any((one != one.bfloat16()).any() for one in expected)
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one, two)


def test_checkpoints_go_on_with_another_number_of_processes(
    tmp_path: Path, folder: Path, batches: list[list[Sample]]
) -> None:
    """One process' checkpoint goes on in two, theirs in one, to 1e-5; in as many as wrote it, bit for bit.

    Its model/ holds the bytes that were published, in the serving dtype.
    """
    batch, base = batches[0], spec_of(folder, {"kind": "ppo", "epochs": 2})
    half = base.model_copy(
        update={"name": "half", "model": base.model.model_copy(update={"dtype": "bfloat16"})}
    )
    specs = {"whole": base.model_copy(update={"name": "whole"}), "half": half}
    expected = {}
    for name, spec in specs.items():
        trainer = alone(spec)
        trainer.step(batch)
        Checkpoints(tmp_path / name, keep=3).write(
            1, trainer_model(trainer, spec), trainer.state_dict(), {"epoch": 1}
        )
        expected[name] = [trainer.step(batch), trainer.step(batch)]
    found = in_group(2, specs, tmp_path, go_on, tmp_path, batch)

    for name, (second, third) in expected.items():
        near = CLOSE if name == "whole" else 0.05
        for figure in ("loss/policy_avg", "loss/value_avg", "objective/kl", "grad_norm"):
            assert found[name]["next"][figure] == pytest.approx(second[figure], abs=near, rel=near), (
                name,
                figure,
            )
            assert found[name]["after"][figure] == pytest.approx(third[figure], abs=near, rel=near), (
                name,
                figure,
            )
        assert without_clock(found[name]["again"]) == without_clock(found[name]["after"])
        written = serving_state(loaded_from(found[name]["path"] / "model", specs[name].model.dtype).model)
        assert entries_of(written) == entries_of(found[name]["weights"])
    assert {one.dtype for one in found["half"]["weights"].values()} == {torch.bfloat16}

    one = alone(specs["whole"])
    one.load_state_dict(Checkpoints(tmp_path / "whole", keep=3).read(found["whole"]["path"])[0])
    after = one.step(batch)
    for figure in without_clock(after):
        assert after[figure] == pytest.approx(found["whole"]["after"][figure], abs=CLOSE, rel=CLOSE), figure


def trainer_model(trainer: Trainer, spec: RunSpec) -> Any:
    """The trainer's model as it was loaded."""
    return replace(loaded_from(Path(spec.model.path), spec.model.dtype), model=trainer.model)


def without_clock(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in CLOCK}


def test_rows_are_dealt_by_tokens() -> None:
    """The longest first, each to whoever has least; rounds are as many for all, within the budget of tokens."""
    lengths = [9, 2, 7, 2, 5, 1]
    assert shares(lengths, 2) == [[0, 1, 3], [2, 4, 5]]
    assert rounds(lengths, 2, 9) == [[[0], [1, 3], []], [[2], [4], [5]]]
    assert rounds([4], 3, 16) == [[[0]], [[]], [[]]]
    assert rounds([], 2, 16) == [[], []]
