"""Log-probs of completion tokens: only their positions meet the vocabulary, in chunks of rows.

The whole [batch, time, vocabulary] tensor never exists, in no dtype. Sequences are padded on the right and
no attention mask is given: under causal attention a real token never sees what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.models.encoder_decoder import EncoderDecoder, is_encoder_decoder
from services.models.packing import micro_batches

Ids = npt.NDArray[np.int32]
Sequenced = tuple[Ids, Ids]
# Rows of logits that stand in float32 at once. 128 x 49,152 stay near the caches: measured 3 times faster than 512.
CHUNK_ROWS = 128


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


def row_states(backbone: Any, rows: Sequence[Sequenced], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Last hidden states of prompts and completions, [rows, time, width], padded on the right.

    At place len(prompt) - 1 + t stands the state that predicts token t, then the one after the last token.
    ids: the rows padded, where that is done already.
    """
    if isinstance(backbone, EncoderDecoder):
        return backbone.states(rows)
    padded = _padded(rows).to(backbone.device) if ids is None else ids
    states: torch.Tensor = backbone(input_ids=padded, use_cache=False).last_hidden_state
    return states


def completion_states(backbone: Any, packed: Packed) -> torch.Tensor:
    """Hidden states that predict the completion tokens, [tokens, width], in the model's dtype."""
    hidden = row_states(backbone, packed.rows, packed.ids)
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


def _chunks(rows: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]


def _chunk(
    states: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    temperature: Temperature,
    *,
    entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _divided((states @ head.T).float(), temperature)
    # log_softmax is one fused pass over each row; torch.logsumexp makes four over the whole chunk.
    logs = torch.log_softmax(logits, dim=-1)
    chosen = logs.gather(-1, targets[:, None])[:, 0]
    spread = -torch.linalg.vecdot(logs.exp(), logs) if entropy else torch.zeros_like(chosen)
    return chosen, spread


def _divided(logits: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """In place."""
    if isinstance(temperature, torch.Tensor):
        return logits.div_(temperature[:, None])
    return logits if temperature == 1.0 else logits.div_(temperature)


def _of(temperature: Temperature, rows: slice) -> Temperature:
    return temperature[rows] if isinstance(temperature, torch.Tensor) else temperature


class _TokenLogprobs(torch.autograd.Function):
    """Logits are made anew in the backward pass.

    d logprob / d logits = (onehot - p) / temperature; d H / d logits = -p (log p + H) / temperature, H = -sum p log p.
    """

    @staticmethod
    def forward(ctx: Any, states: Any, head: Any, targets: Any, temperature: Any, entropy: bool) -> Any:
        ctx.save_for_backward(states, head, targets)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        pieces = [
            _chunk(states[rows], head, targets[rows], _of(temperature, rows), entropy=entropy)
            for rows in _chunks(len(targets))
        ]
        logprobs, spread = (torch.cat(column) for column in zip(*pieces, strict=True))
        if not entropy:
            ctx.mark_non_differentiable(spread)
        return logprobs, spread

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, head, targets = ctx.saved_tensors
        grad_states = torch.empty_like(states)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(targets)):
            temperature = _of(ctx.temperature, rows)
            logits = _divided((states[rows] @ head.T).float(), temperature)
            grad = _logits_grad(logits, targets[rows], *(None if one is None else one[rows] for one in grads))
            low = _divided(grad, temperature).to(states.dtype)
            grad_states[rows] = low @ head
            if grad_head is not None:
                grad_head += (low.T @ states[rows]).float()
        return grad_states, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def _logits_grad(
    logits: torch.Tensor,
    targets: torch.Tensor,
    by_logprob: torch.Tensor | None,
    by_entropy: torch.Tensor | None,
) -> torch.Tensor:
    """By the logits after the temperature, [tokens, vocabulary]. Writes over the logits where it can."""
    if by_entropy is None:
        grad = torch.softmax(logits, dim=-1).neg_()
        if by_logprob is None:
            return grad.zero_()
        grad[torch.arange(len(targets), device=grad.device), targets] += 1.0
        return grad.mul_(by_logprob[:, None])
    logs = torch.log_softmax(logits, dim=-1)
    likely = logs.exp()
    spread = -torch.linalg.vecdot(likely, logs)
    grad = -likely * (logs + spread[:, None]) * by_entropy[:, None]
    if by_logprob is not None:
        grad -= likely * by_logprob[:, None]
        grad[torch.arange(len(targets), device=grad.device), targets] += by_logprob
    return grad


def completion_logprobs(
    model: Any, sequences: Sequence[Sequenced], *, temperature: float, token_budget: int
) -> list[npt.NDArray[np.float32]]:
    """Natural log-probs of completion tokens, one float32 array [completion length] for each sequence.

    sequences: pairs of int32 ids (prompt, completion). Logits are divided by `temperature`. Micro-batches are
    sorted by length and hold at most `token_budget` padded tokens.
    """
    results: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(sequences)
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    head, backbone = model.get_output_embeddings().weight, backbone_of(model)
    with torch.inference_mode():
        for batch in micro_batches(lengths, token_budget):
            packed = pack([sequences[index] for index in batch], head.device)
            states = completion_states(backbone, packed)
            values = token_logprobs(states, head, packed.targets, temperature).cpu()
            for index, piece in zip(batch, torch.split(values, packed.lengths), strict=True):
                results[index] = piece.numpy()
    return results
