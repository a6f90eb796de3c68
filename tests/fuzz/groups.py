"""A sound rollout group, as the stages hand it to each other: what the fuzzers of entries and workers damage."""

from __future__ import annotations

import numpy as np

from services.common import mask_bits
from services.common.arrays import from_numpy
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

VERSION = common.WeightsVersion(epoch=1, step=3, digest="ab" * 32)
_PROMPT = np.array([20, 30, 40], np.int32)


def group(completions: int = 2) -> rollout.RolloutGroup:
    """Every stage behind it but the learner; each completion has five tokens, masks and a score."""
    return rollout.RolloutGroup(
        group_id="1-00000007-0",
        run_uid="run",
        admission_number=7,
        prompt=rollout.Prompt(
            prompt_id="p0",
            token_ids=from_numpy(_PROMPT),
            text="How are you?",
            messages=[common.ChatMessage(role="user", content="How are you?")],
            columns={"trimtab.prompt_index": "0", "reference": "fine"},
        ),
        sampling=common.SamplingOptions(
            temperature=0.7, top_p=0.9, max_new_tokens=8, seed=3, num_completions=completions, stop=["x"]
        ),
        completions=[_completion(at) for at in range(completions)],
        slip=["learner"],
        admitted_version=VERSION,
        timings=[rollout.StageTiming(stage="policy", replica="a", model_seconds=0.5, tokens=10)],
        admitted_step=3,
    )


def _completion(at: int) -> rollout.Completion:
    ids = np.arange(50 + at, 55 + at, dtype=np.int32)
    logprobs = np.linspace(-2, -1, 5, dtype=np.float32)
    masks = np.full((5, 33), 255, np.uint8)
    return rollout.Completion(
        token_ids=from_numpy(ids),
        text="I am well",
        finish_reason=common.FINISH_REASON_STOP,
        raw_logprobs=from_numpy(logprobs),
        sampled_logprobs=from_numpy(logprobs),
        reference_logprobs=from_numpy(logprobs),
        versions=[rollout.VersionSpan(version=VERSION, start=0)],
        scores=[rollout.StageScore(stage="reward", score=common.Score(value=0.5, model="tiny"))],
        loss_mask=from_numpy(np.ones(5, np.uint8)),
        token_rewards=from_numpy(np.zeros(5, np.float32)),
        action_masks=mask_bits.to_wire(masks),
    )
