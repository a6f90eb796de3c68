"""Groups to samples, and prompts to groups: the learner's side of the RolloutGroup message."""

from __future__ import annotations

import math

import numpy as np

from services.common import mask_bits
from services.common.arrays import from_numpy, to_vector
from services.common.errors import Corrupted
from services.common.spec.library import NlpoSpec
from services.common.spec.run import RunSpec
from services.learner.ledger import Admitted
from services.learner.prompts import Prompt
from services.learner.sample import Sample
from services.models.manifest import Version
from services.models.wire import version_message, version_of
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout


def new_group(
    admitted: Admitted, prompt: Prompt, spec: RunSpec, *, run_uid: str, version: Version, step: int
) -> rollout.RolloutGroup:
    """The group to admit. Its draws depend on the run's seed and its admission number alone."""
    sampling = spec.sampling
    temperature, top_p = sampling.at(step, spec.steps)
    return rollout.RolloutGroup(
        group_id=admitted.group_id,
        run_uid=run_uid,
        admission_number=admitted.number,
        replaces=admitted.replaces,
        prompt=rollout.Prompt(
            prompt_id=prompt.prompt_id,
            token_ids=from_numpy(prompt.token_ids),
            text=prompt.text,
            messages=[common.ChatMessage(role=role, content=text) for role, text in prompt.messages],
            columns={**prompt.columns, "trimtab.prompt_index": str(admitted.prompt_index)},
        ),
        sampling=common.SamplingOptions(
            temperature=temperature,
            top_p=top_p,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.max_new_tokens if sampling.fixed_length else sampling.min_new_tokens,
            stop=sampling.stop,
            seed=(spec.seed << 32) + admitted.number,
            num_completions=spec.group_size,
        ),
        slip=[*spec.rollout.slip, "learner"],
        admitted_version=version_message(version),
        admitted_step=step,
    )


def versions_of(group: rollout.RolloutGroup) -> set[Version]:
    """All weights that made any token of the group, by the names they go under."""
    return {version_of(span.version) for one in group.completions for span in one.versions}


def digests_of(group: rollout.RolloutGroup) -> list[str]:
    """Digests of all weights that made any token of the group."""
    return sorted({version.digest for version in versions_of(group)})


def samples_of(group: rollout.RolloutGroup, spec: RunSpec, vocabulary_size: int = 0) -> list[Sample]:
    """One sample for each completion. Raises Corrupted where something that training needs is missing or wrong.

    vocabulary_size: of the trained model; 0 where it is not known.
    """
    prompt = to_vector(group.prompt.token_ids, "int32", field="prompt.token_ids")
    _check_ids(prompt, vocabulary_size, "prompt")
    samples = [
        _sample(prompt, one, spec, f"completions[{at}]", group) for at, one in enumerate(group.completions)
    ]
    for at, sample in enumerate(samples):
        _check_ids(sample.completion_ids, vocabulary_size, f"completions[{at}]")
        # None: as the model is.
        temperature, top_p = (1.0 if value is None else value for value in (sample.temperature, sample.top_p))
        if not 0 < temperature < math.inf or not 0 < top_p <= 1:
            raise Corrupted(f"sampling: temperature {temperature:g} and top_p {top_p:g} draw nothing")
    return samples


def _check_ids(ids: np.ndarray, vocabulary_size: int, field: str) -> None:
    """An id that the model has no row for would end the run inside the step."""
    if len(ids) and (ids.min() < 0 or (vocabulary_size and ids.max() >= vocabulary_size)):
        raise Corrupted(f"{field}: token ids from {ids.min()} to {ids.max()} are not the model's")


def model_seconds(group: rollout.RolloutGroup) -> float:
    """Time that the stages spent inside their models on this group."""
    return sum(timing.model_seconds for timing in group.timings)


def _sample(
    prompt: np.ndarray, one: rollout.Completion, spec: RunSpec, field: str, group: rollout.RolloutGroup
) -> Sample:
    ids = to_vector(one.token_ids, "int32", field=f"{field}.token_ids")
    behaviour = to_vector(one.sampled_logprobs, "float32", field=f"{field}.sampled_logprobs")
    if spec.rollout.reference == "branch":
        reference = np.zeros(len(ids), np.float32)  # the trainer's own branch computes them
    else:
        reference = to_vector(one.reference_logprobs, "float32", field=f"{field}.reference_logprobs")
    if not len(ids) or len(behaviour) != len(ids) or len(reference) != len(ids):
        raise Corrupted(
            f"{field}: {len(ids)} tokens, {len(behaviour)} behaviour and {len(reference)} reference log-probs"
        )
    if not np.isfinite(reference).all() or not np.isfinite(behaviour).all():
        raise Corrupted(f"{field}: a log-prob is not finite")
    mask = np.ones(len(ids), np.float32)
    if one.HasField("loss_mask"):
        mask = to_vector(one.loss_mask, "uint8", field=f"{field}.loss_mask").astype(np.float32)
    if len(mask) != len(ids):
        raise Corrupted(f"{field}: {len(ids)} tokens have a loss mask of {len(mask)}")
    return Sample(
        prompt_ids=prompt,
        completion_ids=ids,
        behaviour_logprobs=behaviour,
        reference_logprobs=reference,
        loss_mask=mask,
        score=_score(one, spec, field),
        ended=one.finish_reason == common.FINISH_REASON_STOP,
        group=group.group_id,
        temperature=group.sampling.temperature or spec.sampling.temperature,
        top_p=group.sampling.top_p or spec.sampling.top_p,
        action_masks=_masks(one, ids, field) if isinstance(spec.algorithm, NlpoSpec) else None,
    )


def _masks(one: rollout.Completion, ids: np.ndarray, field: str) -> mask_bits.MaskBits:
    """What could be drawn at each token: its own token always could."""
    masks = mask_bits.from_wire(one.action_masks, len(ids), field=f"{field}.action_masks")
    outside = np.flatnonzero(~mask_bits.allows(masks, ids)) if masks.size else [0]
    if len(outside):
        told = f"token {outside[0]} was drawn outside its mask" if masks.size else "there are no action masks"
        raise Corrupted(f"{field}: {told}: was it drawn with decoding.mask?")
    return masks


def _score(one: rollout.Completion, spec: RunSpec, field: str) -> float:
    """Weighted sum over the scoring stages of the slip; every one of them must have given a value."""
    stages = [name for name in spec.rollout.slip if name == "reward" or name.startswith("reward/")]
    values = {scored.stage: scored.score for scored in one.scores}
    total = 0.0
    for stage in stages:
        score = values.get(stage)
        if score is not None and score.HasField("error"):
            raise Corrupted(f"{field}: stage {stage} gave no score: {score.error.message}")
        if score is None or not score.HasField("value") or not math.isfinite(score.value):
            raise Corrupted(f"{field}: stage {stage} gave no score")
        total += spec.rollout.reward_weights.get(stage, 1.0) * score.value
    return total
