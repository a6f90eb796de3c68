"""Log-probs of completion tokens: only their positions meet the vocabulary, a part of it at a time.

The whole [batch, time, vocabulary] tensor never exists, in no dtype. Sequences are padded on the right and
no attention mask is given: under causal attention a real token never sees what comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.models.encoder_decoder import EncoderDecoder, is_encoder_decoder
from services.models.packing import micro_batches
from services.models.unrolled import Unrolled

Ids = npt.NDArray[np.int32]
Sequenced = tuple[Ids, Ids]
# Logits that stand in float32 at once: on a processor as many as its caches hold, on a device enough to keep it busy.
PART = 1 << 20
DEVICE_PART = 1 << 26
LEAST = 64


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-batch.

    ids: [rows, time] int64, padded on the right. positions: [tokens] int64 into rows * time, the places whose
    hidden state predicts a completion token. targets: [tokens] int64, those tokens. lengths: completion
    length of each row; tokens stand row after row. rows: the pairs themselves.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    rows: Sequence[Sequenced]


def pack(sequences: Sequence[Sequenced], device: torch.device | str = "cpu") -> Packed:
    """Pad (prompt ids, completion ids) pairs into one micro-batch. Prompts must not be empty."""
    ids = _padded(sequences)
    width = ids.shape[1]
    positions, targets = [], []
    for row, (prompt, completion) in enumerate(sequences):
        positions.append(row * width + np.arange(len(prompt) - 1, len(prompt) + len(completion) - 1))
        targets.append(completion)
    return Packed(
        ids.to(device),
        torch.from_numpy(np.concatenate(positions)).to(device),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device),
        [len(completion) for _, completion in sequences],
        sequences,
    )


def _padded(sequences: Sequence[Sequenced]) -> torch.Tensor:
    """[rows, time] int64, 0 behind the end."""
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    for row, (prompt, completion) in enumerate(sequences):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(completion)] = completion
    return torch.from_numpy(ids)


def backbone_of(model: Any) -> Any:
    """What gives the last hidden states of a language model: the part below a causal head, or both stacks."""
    return EncoderDecoder(model) if is_encoder_decoder(model) else model.base_model


def row_states(
    backbone: Any,
    rows: Sequence[Sequenced],
    ids: torch.Tensor | None = None,
    layers: Unrolled | None = None,
) -> torch.Tensor:
    """Last hidden states of prompts and completions, [rows, time, width], padded on the right.

    At place len(prompt) - 1 + t stands the state that predicts token t, then the one after the last token.
    ids: the rows padded, where that is done already. layers: the backbone's in a faster way, where there is one.
    """
    if isinstance(backbone, EncoderDecoder):
        return backbone.states(rows)
    padded = _padded(rows).to(backbone.device) if ids is None else ids
    if layers is not None:
        lengths = [len(prompt) + len(completion) for prompt, completion in rows]
        prompts = [prompt for prompt, _ in rows]
        return layers(backbone.get_input_embeddings()(padded), lengths, prompts)
    states: torch.Tensor = backbone(input_ids=padded, use_cache=False).last_hidden_state
    return states


def completion_states(backbone: Any, packed: Packed, layers: Unrolled | None = None) -> torch.Tensor:
    """Hidden states that predict the completion tokens, [tokens, width]. layers: see row_states."""
    hidden = row_states(backbone, packed.rows, packed.ids, layers)
    return hidden.reshape(-1, hidden.shape[-1])[packed.positions]


Temperature = float | torch.Tensor
"""One for all tokens, or one each, [tokens] float32."""


def token_logprobs(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, temperature: Temperature
) -> torch.Tensor:
    """log softmax(states @ head.T / temperature) at the targets, [tokens] float32, differentiable.

    states: [tokens, width]; head: [vocabulary, width]; targets: [tokens] int64. The backward pass makes the
    logits of a chunk again instead of keeping them.
    """
    return _TokenLogprobs.apply(states, head, targets, temperature, False)[0]  # type: ignore[no-untyped-call]


def token_logprobs_and_entropy(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, temperature: Temperature
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs as above and the entropy of each distribution in nats, both [tokens] float32, differentiable."""
    return _TokenLogprobs.apply(states, head, targets, temperature, True)  # type: ignore[no-untyped-call]


class _TokenLogprobs(torch.autograd.Function):
    """Logits are made anew in the backward pass, a part of the vocabulary at a time.

    With f = logits / temperature, p = softmax f, H = -sum p log p:
    d logprob / d f = onehot - p;  d H / d f = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, states: Any, head: Any, targets: Any, temperature: Any, entropy: bool) -> Any:
        rows = len(targets)
        chosen = torch.empty(rows, device=states.device)
        top = torch.full((rows, 1), float("-inf"), device=states.device)
        total, weighted = torch.zeros_like(top), torch.zeros_like(top)
        for part, here in _parts(head, targets):
            logits = _logits(states, head[part], temperature)
            chosen[here] = logits[here, targets[here] - part.start]
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = (top - higher).exp_()
            likely = (logits - higher).exp_()
            total = total * shrink + likely.sum(1, keepdim=True)
            if entropy:
                weighted = weighted * shrink + torch.linalg.vecdot(likely, logits)[:, None]
            top = higher
        normaliser = top + total.log()
        spread = normaliser - weighted / total if entropy else torch.zeros_like(normaliser)
        ctx.save_for_backward(states, head, targets, normaliser, spread)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        result = spread[:, 0]
        if not entropy:
            ctx.mark_non_differentiable(result)
        return chosen.sub_(top[:, 0]).sub_(total.log()[:, 0]), result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, head, targets, normaliser, spread = ctx.saved_tensors
        by_logprob, by_entropy = grads
        by_states = torch.zeros_like(states, dtype=torch.float32)
        by_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        zero = torch.zeros(len(targets), device=states.device)
        slope = zero if by_logprob is None else by_logprob
        scale = -(torch.ones_like(zero) if by_entropy is not None else slope) / ctx.temperature
        scaled = (states * scale[:, None]).to(states.dtype) if by_head is not None else states
        for part, here in _parts(head, targets):
            logs = _logits(states, head[part], ctx.temperature).sub_(normaliser)
            low = _minus_slopes(logs, spread, slope, by_entropy, here, targets[here] - part.start).to(
                states.dtype
            )
            by_states += low @ head[part]
            if by_head is not None:
                torch.mm(low.t(), scaled, out=by_head[part])
        return by_states.mul_(scale[:, None]).to(states.dtype), by_head, None, None, None


def _parts(head: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Parts of the vocabulary, each with the rows whose target is in it."""
    size = PART if head.device.type == "cpu" else DEVICE_PART
    step = max(LEAST, size // max(1, len(targets)))
    starts = torch.arange(0, len(head), step, device=head.device)
    order = torch.argsort(targets, stable=True)
    ends = [*torch.searchsorted(targets[order], starts).tolist(), len(targets)]
    for at, start in enumerate(starts.tolist()):
        yield slice(start, min(start + step, len(head))), order[ends[at] : ends[at + 1]]


def _logits(states: torch.Tensor, head: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """[tokens, part of the vocabulary] float32, after the temperature."""
    logits = (states @ head.t()).float()
    if isinstance(temperature, torch.Tensor):
        return logits.div_(temperature[:, None])
    return logits if temperature == 1.0 else logits.div_(temperature)


def _minus_slopes(
    logs: torch.Tensor,
    spread: torch.Tensor,
    slope: torch.Tensor,
    by_entropy: torch.Tensor | None,
    here: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """Minus the gradient by a part of the logits, [tokens, part]; writes over their log-probs `logs`.

    Without a gradient of the entropy each row lacks its factor `slope`, which the products get instead.
    """
    if by_entropy is None:
        likely = logs.exp_()
        likely[here, places] -= 1.0
        return likely
    likely = logs.exp()
    likely.mul_(logs.add_(spread).mul_(by_entropy[:, None]).add_(slope[:, None]))
    likely[here, places] -= slope[here]
    return likely


def completion_logprobs(
    model: Any,
    sequences: Sequence[Sequenced],
    *,
    temperature: float,
    token_budget: int,
    layers: Unrolled | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Natural log-probs of completion tokens, one float32 array [completion length] for each sequence.

    sequences: pairs of int32 ids (prompt, completion). Logits are divided by `temperature`. Micro-batches are
    sorted by length and hold at most `token_budget` padded tokens. layers: the model's own in a faster way.
    """
    results: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(sequences)
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    head, backbone = model.get_output_embeddings().weight, backbone_of(model)
    with torch.inference_mode():
        for batch in micro_batches(lengths, token_budget):
            packed = pack([sequences[index] for index in batch], head.device)
            states = completion_states(backbone, packed, layers)
            values = token_logprobs(states, head, packed.targets, temperature).cpu()
            for index, piece in zip(batch, torch.split(values, packed.lengths), strict=True):
                results[index] = piece.numpy()
    return results
