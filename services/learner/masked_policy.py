"""NLPO's side of the trainer: the mask model and when it is refreshed, and log-probs within the rollouts' masks.

    rollouts ─▶ masks that their tokens were drawn with ─▶ log-probs of the masked policy: the ratio's
                                                        └▶ log-probs before the mask: the KL's
    updates ─▶ every `refresh_every` the mask model becomes the policy ─▶ published beside it ─▶ the engine's masks

The masks travel with the rollouts: the learner never asks the mask model what it would allow, since its own arithmetic
might decide otherwise than the engine's did at a nucleus' edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from services.common.errors import Corrupted
from services.common.spec.library import NlpoSpec
from services.learner.algorithms.nlpo import MaskModel
from services.learner.sample import Sample
from services.models.action_masks import MASK_COMPONENT, masked_logits, unpacked
from services.models.loading import serving_state
from services.models.logprobs import Temperature
from services.models.manifest import in_component

CHUNK_ROWS = 128
"""Rows of logits that stand in float32 at once, with their masks."""
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)
"""Bits that are set in each byte."""


class MaskedPolicy:
    """The mask model of a run, and how many updates the policy has had."""

    def __init__(self, model: Any, spec: NlpoSpec) -> None:
        self._mask = MaskModel(model, spec)
        self._updates = 0
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])

    def updated(self, model: Any, more: int) -> bool:
        """The policy has had so many updates more; whether the mask model has become it."""
        self._updates += more
        return self._mask.updated(model, self._updates)

    def weights(self) -> dict[str, torch.Tensor]:
        """The mask model's, to be published beside the policy's."""
        return in_component(MASK_COMPONENT, serving_state(self._mask.model))

    def metrics(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Share of the vocabulary that could not be drawn, mean over tokens that count; times it was refreshed."""
        allowed = np.concatenate([_ONES[self._bits(one)].sum(1) for one in samples])
        counts = np.concatenate([one.loss_mask for one in samples])
        share = 1 - float((allowed * counts).sum()) / max(1.0, float(counts.sum())) / self._vocabulary
        return {"policy/masked_share": share, "policy/mask_version": float(self._mask.version)}

    def logprobs(
        self,
        states: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        temperature: Temperature,
        samples: Sequence[Sample],
    ) -> Three:
        """Of the masked policy, of the policy before the mask, and the masked policy's entropy; each [tokens] float32.

        states: [tokens, width], row after row of the samples; see services/models/logprobs.py.
        """
        masks = torch.from_numpy(np.concatenate([self._bits(one) for one in samples])).to(states.device)
        return masked_logprobs(states, head, targets, temperature, masks)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "updates": self._updates,
            "version": self._mask.version,
            "model": self._mask.model.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint: the mask model as old as it was."""
        self._updates = int(state["updates"])
        self._mask.restore(state["model"], version=int(state["version"]), updates=self._updates)

    def _bits(self, sample: Sample) -> np.ndarray:
        masks, wide = sample.action_masks, -(-self._vocabulary // 8)
        if masks is None or masks.shape != (len(sample.completion_ids), wide):
            found = "none" if masks is None else list(masks.shape)
            raise Corrupted(f"action masks: expected [{len(sample.completion_ids)}, {wide}], got {found}")
        return masks


def masked_logprobs(
    states: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    temperature: Temperature,
    masks: torch.Tensor,
) -> Three:
    """See MaskedPolicy.logprobs; masks: uint8 [tokens, ceil(vocabulary / 8)]. Differentiable.

    Logits stand in float32 for some rows at a time, and are made again in the backward pass.
    """
    pieces = []
    for at in range(0, len(targets), CHUNK_ROWS):
        rows = slice(at, at + CHUNK_ROWS)
        divided_by = temperature[rows] if isinstance(temperature, torch.Tensor) else temperature
        pieces.append(
            checkpoint(
                _chunk, states[rows], head, targets[rows], divided_by, masks[rows], use_reentrant=False
            )
        )
    masked, raw, spread = (torch.cat(column) for column in zip(*pieces, strict=True))
    return masked, raw, spread


def _chunk(
    states: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    temperature: Temperature,
    masks: torch.Tensor,
) -> Three:
    logits = (states @ head.T).float()
    logits = logits / (temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature)
    allowed, at = unpacked(masks, len(head)), targets[:, None]
    logs = masked_logits(logits, allowed).log_softmax(-1)
    # Where nothing may be drawn: 0, since 0 times minus infinity is no number.
    finite = logs.masked_fill(~allowed, 0.0)
    spread = -(finite.exp() * allowed * finite).sum(-1)
    return logs.gather(-1, at)[:, 0], logits.log_softmax(-1).gather(-1, at)[:, 0], spread
