"""Groups to samples: what training needs is there and fits, or the group is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.common import mask_bits
from services.common.arrays import from_numpy, to_numpy
from services.common.errors import Corrupted, TrimtabError
from services.common.spec.run import RunSpec
from services.learner.ledger import Admitted
from services.learner.prompts import Prompt
from services.learner.rollouts import digests_of, new_group, samples_of
from services.models.manifest import Version
from tests.fakes.tiny_runs import run_spec
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

VERSION = Version(2, 5, "d" * 64)
PROMPT = Prompt("p", (("user", "hi"),), "hi", np.array([1, 2], np.int32), {"topic": "x"})


def spec_of(**rollout_fields: object) -> RunSpec:
    sampling = {
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 3,
        "max_new_tokens": 9,
        "min_new_tokens": 1,
        "stop": ["."],
    }
    return run_spec(Path("model"), seed=3, sampling=sampling, rollout=rollout_fields)


def finished_group(**fields: object) -> rollout.RolloutGroup:
    """Two completions, scored by two stages."""
    spec = spec_of(slip=["policy", "reference", "reward/hh", "reward/rules"], **fields)
    group = new_group(Admitted("g", 4, 0, 0), PROMPT, spec, run_uid="r", version=VERSION, step=5)
    for at in range(2):
        numbers = np.arange(3, dtype=np.float32)
        one = group.completions.add(finish_reason=at + 1)
        one.token_ids.CopyFrom(from_numpy(np.arange(3, dtype=np.int32)))
        one.raw_logprobs.CopyFrom(from_numpy(numbers - 9))
        one.sampled_logprobs.CopyFrom(from_numpy(numbers - 5))
        one.reference_logprobs.CopyFrom(from_numpy(numbers - 7))
        one.scores.add(stage="reward/hh").score.value = 2.0
        one.scores.add(stage="reward/rules").score.value = at
        one.versions.add(start=0).version.digest = "ab"[at]
    return group


def test_a_new_group_carries_the_whole_order() -> None:
    """Ids, text, messages, columns, sampling, slip with the learner last, version and number."""
    spec = spec_of(completions_per_prompt=4, slip=["policy", "reference", "reward"])
    admitted = Admitted("id", 7, 0, 1, "before")
    group = new_group(admitted, PROMPT, spec, run_uid="run", version=VERSION, step=5)
    assert to_numpy(group.prompt.token_ids).tolist() == [1, 2]
    assert (group.prompt.prompt_id, group.prompt.text, group.prompt.columns["topic"]) == ("p", "hi", "x")
    assert [(message.role, message.content) for message in group.prompt.messages] == [("user", "hi")]
    assert list(group.slip) == ["policy", "reference", "reward", "learner"]
    assert (group.admission_number, group.replaces, group.admitted_step) == (7, "before", 5)
    assert (group.admitted_version.epoch, group.admitted_version.step) == (2, 5)
    options = group.sampling
    assert options.top_p == 0.5
    assert options.temperature == pytest.approx(0.7)
    assert (options.top_k, options.max_new_tokens, options.min_new_tokens) == (3, 9, 1)
    assert (list(options.stop), options.num_completions) == (["."], 4)
    assert group.admission_number == 7


def test_draws_depend_on_the_runs_seed_and_the_number_alone() -> None:
    """Another number or another run's seed is another seed; the largest of both fit into 64 bits."""

    def seed(run_seed: int, number: int) -> int:
        spec = run_spec(Path("model"), seed=run_seed)
        admitted = Admitted("id", number, 0, 0)
        return new_group(admitted, PROMPT, spec, run_uid="r", version=VERSION, step=0).sampling.seed

    assert seed(1, 5) == seed(1, 5)
    assert len({seed(1, 5), seed(1, 6), seed(2, 5), seed(2**31 - 1, 2**32 - 1)}) == 4


def test_samples_have_what_training_needs() -> None:
    """Sampled log-probs are the behaviour's, the reference's stand beside them, scores are added up."""
    one, two = samples_of(
        finished_group(), spec_of(slip=["policy", "reference", "reward/hh", "reward/rules"])
    )
    assert one.prompt_ids.tolist() == [1, 2]
    assert one.completion_ids.tolist() == [0, 1, 2]
    assert one.behaviour_logprobs.tolist() == [-5, -4, -3]
    assert one.reference_logprobs.tolist() == [-7, -6, -5]
    assert one.loss_mask.tolist() == [1, 1, 1]
    assert (one.score, two.score) == (2.0, 3.0)
    assert (one.ended, two.ended) == (True, False)


def test_scores_are_weighted() -> None:
    """Each stage by its weight, 1 where none is given: 0.5 * 2 + 1 * 1."""
    spec = spec_of(
        slip=["policy", "reference", "reward/hh", "reward/rules"], reward_weights={"reward/hh": 0.5}
    )
    assert samples_of(finished_group(), spec)[1].score == pytest.approx(2.0)


def test_a_loss_mask_is_taken_over() -> None:
    """Tokens that do not count arrive as 0."""
    group = finished_group()
    group.completions[0].loss_mask.CopyFrom(from_numpy(np.array([1, 0, 1], np.uint8)))
    assert samples_of(group, spec_of(slip=["policy", "reference", "reward/hh"]))[0].loss_mask.tolist() == [
        1,
        0,
        1,
    ]


def masked_group(*allowed: list[int]) -> tuple[rollout.RolloutGroup, RunSpec]:
    """The first completion's tokens are 0, 1, 2; each of `allowed` is what could be drawn at one of them."""
    group = finished_group()
    rows = [[token in each for token in range(11)] for each in allowed]
    for one in group.completions:
        bits = np.packbits(np.array(rows or np.zeros((0, 11)), bool), axis=1, bitorder="little")
        one.action_masks = mask_bits.to_wire(bits)
    slip = ["policy", "reference", "reward/hh", "reward/rules"]
    return group, run_spec(Path("model"), algorithm={"kind": "nlpo"}, rollout={"slip": slip})


def test_action_masks_are_taken_over() -> None:
    """NLPO's, as bits; other algorithms do not look at them."""
    group, spec = masked_group([0, 10], [1], [2, 3])
    found = samples_of(group, spec)[0].action_masks
    assert found is not None
    assert np.unpackbits(found, axis=1, bitorder="little").nonzero()[1].tolist() == [0, 10, 1, 2, 3]
    assert samples_of(group, spec_of(slip=["policy", "reference", "reward/hh"]))[0].action_masks is None


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (([0], [0, 2], [2]), r"completions\[0\]: token 1 was drawn outside its mask"),
        ((), "there are no action masks: was it drawn with decoding"),
    ],
)
def test_a_token_outside_its_mask_is_refused(allowed: tuple[list[int], ...], words: str) -> None:
    """The learner would give it a probability of 0; a rollout without masks was drawn by another policy."""
    group, spec = masked_group(*allowed)
    with pytest.raises(Corrupted, match=words):
        samples_of(group, spec)


def test_all_weights_that_made_a_token_are_named() -> None:
    """Each digest once, over all completions and spans."""
    group = finished_group()
    group.completions[0].versions.add(start=1).version.digest = "b"
    assert digests_of(group) == ["a", "b"]


def short(name: str) -> Callable[[rollout.Completion], object]:
    return lambda one: getattr(one, name).CopyFrom(from_numpy(np.zeros(2, np.float32)))


def not_finite(name: str) -> Callable[[rollout.Completion], object]:
    return lambda one: getattr(one, name).CopyFrom(from_numpy(np.array([0, np.nan, 0], np.float32)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (short("sampled_logprobs"), "3 tokens, 2 behaviour and 3 reference log-probs"),
        (short("reference_logprobs"), "3 tokens, 3 behaviour and 2 reference log-probs"),
        (lambda one: one.ClearField("reference_logprobs"), "reference_logprobs"),
        (lambda one: one.token_ids.CopyFrom(from_numpy(np.zeros(0, np.int32))), "0 tokens"),
        (not_finite("sampled_logprobs"), "a log-prob is not finite"),
        (not_finite("reference_logprobs"), "a log-prob is not finite"),
        (
            lambda one: one.loss_mask.CopyFrom(from_numpy(np.ones(2, np.uint8))),
            "3 tokens have a loss mask of 2",
        ),
        (lambda one: one.scores.pop(), "stage reward/rules gave no score"),
        (
            lambda one: one.scores[1].score.error.CopyFrom(common.ErrorInfo(message="no such rule")),
            "stage reward/rules gave no score: no such rule",
        ),
        (lambda one: one.scores[1].score.ClearField("value"), "stage reward/rules gave no score"),
        (
            lambda one: setattr(one.scores[1].score, "value", float("inf")),
            "stage reward/rules gave no score",
        ),
    ],
)
def test_what_cannot_be_trained_on(
    damage: Callable[[rollout.Completion], object], message: str | None
) -> None:
    """Missing, short or infinite numbers are an error of this group, never a 0 in the loss."""
    group, spec = finished_group(), spec_of(slip=["policy", "reference", "reward/hh", "reward/rules"])
    damage(group.completions[1])
    with pytest.raises(TrimtabError, match=message) as caught:
        samples_of(group, spec)
    assert str(caught.value).startswith("completions[1]")
