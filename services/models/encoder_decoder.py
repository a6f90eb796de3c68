"""Encoder-decoder models of the T5 family: the prompt goes through the encoder, the completion through the decoder.

    prompt    p p p ──encoder──▶ read by every place of the decoder; once for all rows with this prompt
    decoder   s c c c            s: the model's decoder_start_token_id
    predicts  c c c ·            ·: the state after the completion

For everybody else their states are laid out as a causal model's, prompt and completion one after the other: at place
len(prompt) - 1 + t stands the state that predicts token t. Before it stands nothing that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from services.common.errors import InvalidInput

Ids = npt.NDArray[np.int32]
Row = tuple[Ids, Ids]
"""Prompt ids and completion ids, at least one token of a prompt."""
# Whose decoder blocks share the first one's position bias, counted from the query alone.
_FAMILY = {"t5", "mt5"}


class EncoderDecoder(torch.nn.Module):
    """Both stacks of a model, whose parameters it shares.

    encoded: whether `forward` takes the encoder's states instead of the prompts' embeddings.
    """

    def __init__(self, model: Any, *, encoded: bool = False) -> None:
        super().__init__()
        check_family(model)
        self.config = model.config
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()
        self.start = start_token(model)
        self.encoded = encoded
        # What T5 1.0 multiplies last states by before its tied head.
        scaled = getattr(model.config, "scale_decoder_outputs", False)
        self.scale = float(model.config.hidden_size**-0.5) if scaled else 1.0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.decoder.embed_tokens.weight.device
        return device

    def get_input_embeddings(self) -> Any:
        """As transformers' models name it; both stacks share them."""
        return self.decoder.embed_tokens

    def embedded(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Embeddings of each row's prompt, start token and completion, [prompt + 1 + completion, width]."""
        ids = [np.concatenate([prompt, [self.start], completion]) for prompt, completion in rows]
        flat = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        return list(self.decoder.embed_tokens(flat).split([len(each) for each in ids]))

    def encode(self, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The encoder's states [prompts, time, width] of embeddings of that shape; mask: [prompts, time], 1 or 0."""
        states: torch.Tensor = self.encoder(inputs_embeds=prompts, attention_mask=mask).last_hidden_state
        return states

    def forward(
        self, prompts: torch.Tensor, mask: torch.Tensor, which: torch.Tensor, answers: torch.Tensor
    ) -> torch.Tensor:
        """Last states of the decoder, ready for the head, [rows, answer time, width].

        prompts, mask: see encode. which: [rows] int64, each row's prompt. answers: embeddings, [rows, time, width].
        """
        states = prompts if self.encoded else self.encode(prompts, mask)
        found = self.decoder(
            inputs_embeds=answers,
            encoder_hidden_states=states[which],
            encoder_attention_mask=mask[which],
            use_cache=False,
        ).last_hidden_state
        return found if self.scale == 1.0 else found * self.scale

    def states(self, rows: Sequence[Row]) -> torch.Tensor:
        """Last states as the module lays them out, [rows, time, width]."""
        return passed(self, self.embedded(rows), rows)


@dataclass(frozen=True, slots=True)
class EncoderDecoderSplit:
    """See trunk.Halves. The frozen half is the embeddings, and the encoder where all of it is frozen."""

    upper_half: EncoderDecoder
    trains_embeddings = False

    def lower_rows(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """See trunk.Halves: embeddings (or the encoder's states) of the prompt, then those of the decoder's input."""
        half = self.upper_half
        with torch.no_grad():
            states = half.embedded(rows)
            if half.encoded:
                prompts, mask, which = _distinct(states, rows)
                encoded = half.encode(prompts, mask)
                states = [
                    torch.cat([encoded[at, : len(prompt)], state[len(prompt) :]])
                    for state, at, (prompt, _) in zip(states, which.tolist(), rows, strict=True)
                ]
        return states

    def upper_rows(
        self, states: Sequence[torch.Tensor], rows: Sequence[Row], half: Callable[..., Any] | None = None
    ) -> torch.Tensor:
        """See trunk.Halves."""
        return passed(half or self.upper_half, states, rows)


def passed(half: Callable[..., Any], states: Sequence[torch.Tensor], rows: Sequence[Row]) -> torch.Tensor:
    """What an EncoderDecoder makes of rows as `embedded` gives them, laid out as the module says."""
    prompts, mask, which = _distinct(states, rows)
    begins = [len(prompt) for prompt, _ in rows]
    answers = pad_sequence([state[at:] for state, at in zip(states, begins, strict=True)], batch_first=True)
    found: torch.Tensor = half(prompts=prompts, mask=mask, which=which, answers=answers)
    placed = [
        pad(found[at, : len(completion) + 1], (0, 0, len(prompt) - 1, 0))
        for at, (prompt, completion) in enumerate(rows)
    ]
    return pad_sequence(placed, batch_first=True)


def _distinct(
    states: Sequence[torch.Tensor], rows: Sequence[Row]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts that differ, padded [prompts, time, width], their mask, and each row's one [rows] int64."""
    numbers: dict[bytes, int] = {}
    which = [numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt, _ in rows]
    first = [which.index(number) for number in range(len(numbers))]
    parts = [states[at][: len(rows[at][0])] for at in first]
    device = states[0].device
    lengths = torch.tensor([len(part) for part in parts], device=device)
    padded = pad_sequence(parts, batch_first=True)
    mask = (torch.arange(padded.shape[1], device=device) < lengths[:, None]).long()
    return padded, mask, torch.tensor(which, device=device)


def freeze_encoder_decoder(model: Any, layers: int) -> EncoderDecoderSplit:
    """Freeze the embeddings (and the head) and the lowest layers, the encoder's before the decoder's.

    A frozen encoder runs once a batch. Raises InvalidInput for another form or fewer layers.
    """
    check_family(model)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    blocks = [*encoder.block, *decoder.block]
    if layers >= len(blocks):
        raise InvalidInput(
            f"frozen_layers = {layers}, but the model has {len(encoder.block)} layers in the encoder "
            f"and {len(decoder.block)} in the decoder"
        )
    whole = layers >= len(encoder.block)
    frozen = [model.get_input_embeddings(), model.get_output_embeddings(), *blocks[:layers]]
    for module in (*frozen, encoder.final_layer_norm) if whole else frozen:
        module.requires_grad_(False)
    return EncoderDecoderSplit(EncoderDecoder(model, encoded=whole))


def trial(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own logits and the states here of one row whose completion is its prompt again.

    ids: [1, time] int64. Both [1, time + 1, …]. Raises as EncoderDecoder does.
    """
    stacks = EncoderDecoder(model)
    answer = torch.cat([torch.full_like(ids[:, :1], stacks.start), ids], 1)
    logits = model(input_ids=ids, decoder_input_ids=answer, use_cache=False).logits
    same = ids[0].cpu().numpy().astype(np.int32)
    return logits, stacks.states([(same, same)])[:, ids.shape[1] - 1 :]


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model of transformers has two stacks."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def start_token(model: Any) -> int:
    """What a decoder begins with. Raises InvalidInput where neither of the model's configs names it."""
    for config in (model.config, getattr(model, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise InvalidInput(
        f"{type(model).__name__}: config.json names no decoder_start_token_id, with which a decoder begins"
    )


def check_family(model: Any) -> None:
    """Raises InvalidInput for a model with an encoder that is not of the T5 family."""
    if model.config.model_type not in _FAMILY:
        raise InvalidInput(
            f"{type(model).__name__}: of encoder-decoder models only the T5 family "
            f"({', '.join(sorted(_FAMILY))}) is supported"
        )
