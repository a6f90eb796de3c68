"""Splitting a decoder between its frozen lower layers and the rest, so that the frozen half runs once a batch.

Both halves share the original's parameters. Works for models of the Llama family's form (embed_tokens, layers,
norm, rotary embeddings made from positions) and for the T5 family (encoder_decoder.py); others are refused, not
guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from services.common.errors import InvalidInput
from services.models.encoder_decoder import Row, freeze_encoder_decoder, is_encoder_decoder
from services.models.packed import probe_rows, same_states
from services.models.unrolled import Unrolled, unroll, with_layers

WRITTEN_OUT = 512
"""Tokens of the longest row up to which the lower half, which has no way back, goes through products written out as the
upper one does: 8 rows of 256 with one prompt 98 ms a layer instead of 215, 4 of 1,024 688 instead of torch's 364."""

# Where a bare transformer has its layers: Llama's form and ModernBERT, GPT-2 and Bloom, MPT, OPT, BERT, DistilBERT.
_LAYERS = ("layers", "h", "blocks", "decoder.layers", "encoder.layer", "transformer.layer")


class Halves(Protocol):
    """A model in two halves, for rows of (prompt ids, completion ids): what the learner asks of an architecture."""

    @property
    def upper_half(self) -> Any:
        """The module that is trained."""
        ...

    @property
    def trains_embeddings(self) -> bool:
        """Whether the embeddings are, so that what the upper half takes changes with every update."""
        ...

    def lower_rows(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """What the upper half takes of each row, [length, width], without a gradient: once a batch is enough."""
        ...

    def upper_rows(
        self, states: Sequence[torch.Tensor], rows: Sequence[Row], half: Callable[..., Any] | None = None
    ) -> torch.Tensor:
        """Last states [rows, time, width] from those that `lower_rows` gave, padded on the right.

        At place len(prompt) - 1 + t stands the state that predicts token t, then the one after the last token.
        half: what computes instead of the upper half: a copy of it, or of its faster way, or it with other weights.
        """
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """lower(ids) gives the hidden states [rows, time, width] between the halves; upper goes on from there."""

    lower_half: Any
    upper_half: Any
    unrolled: Unrolled | None = None
    """The upper half's layers in a faster way, where there is one."""
    unrolled_below: Unrolled | None = None
    """The lower half's: on a processor, since the model may be moved to a GPU after it was split."""
    trains_embeddings: bool = False

    def lower(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states after the frozen layers, [rows, time, width], without a gradient.

        Where the embeddings are trained these are the embeddings, with the gradient that is asked for.
        """
        with torch.set_grad_enabled(self.trains_embeddings and torch.is_grad_enabled()):
            return self.lower_half(input_ids=ids, use_cache=False).last_hidden_state

    def upper(
        self, hidden: torch.Tensor, lengths: Sequence[int], prompts: Sequence[npt.NDArray[np.int32]] = ()
    ) -> torch.Tensor:
        """Last hidden states, [rows, time, width], from those that `lower` gave. lengths: tokens of each row.

        prompts: what each row begins with, for those that begin alike to be computed once.
        """
        if self.unrolled is not None:
            return self.unrolled(hidden, lengths, prompts)
        return self.upper_half(inputs_embeds=hidden, use_cache=False).last_hidden_state

    def lower_rows(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """See Halves."""
        ids = [torch.from_numpy(np.concatenate(row).astype(np.int64)) for row in rows]
        padded = pad_sequence(ids, batch_first=True).to(self.lower_half.device)
        if self.unrolled_below is None or padded.device.type != "cpu" or padded.shape[1] > WRITTEN_OUT:
            hidden = self.lower(padded)
        else:
            embedded = self.lower_half.get_input_embeddings()(padded)
            lengths, prompts = [len(one) for one in ids], [prompt for prompt, _ in rows]
            with torch.no_grad():
                hidden = self.unrolled_below(embedded, lengths, prompts)
        return [states[: len(row)] for states, row in zip(hidden, ids, strict=True)]

    def upper_rows(
        self,
        states: Sequence[torch.Tensor],
        rows: Sequence[Row],
        half: Callable[..., Any] | None = None,
    ) -> torch.Tensor:
        """See Halves."""
        hidden = pad_sequence(list(states), batch_first=True)
        lengths, prompts = [len(one) for one in states], [prompt for prompt, _ in rows]
        if half is None:
            return self.upper(hidden, lengths, prompts)
        if isinstance(half, Unrolled):
            return half(hidden, lengths, prompts)
        found: torch.Tensor = half(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return found


def halves_of(model: Any, layers: int, *, embeddings: bool = False, written_out: bool = True) -> Halves:
    """Freeze the embeddings (and a tied head) and the lowest `layers` layers of any model, and split there.

    embeddings: they are trained too. written_out: see freeze. Raises InvalidInput when the model has another form or
    fewer layers.
    """
    if not is_encoder_decoder(model):
        return freeze(model, layers, embeddings=embeddings, written_out=written_out)
    if embeddings:
        raise InvalidInput(
            "train_embeddings: both stacks of an encoder-decoder read them; they are not trained"
        )
    return freeze_encoder_decoder(model, layers)


def freeze(model: Any, layers: int, *, embeddings: bool = False, written_out: bool = True) -> Split:
    """Freeze the embeddings (and a tied head) and the lowest `layers` layers, and split there.

    With 0 layers nothing else is frozen and the lower half is the embedding alone. embeddings: they are trained too,
    and the head. written_out: the upper half's layers may be those of unrolled.py, which multiply by weights instead of
    calling modules. Raises InvalidInput when the model has another form or fewer layers, its halves one after the other
    are not the model, or trained embeddings would stand below frozen layers.
    """
    if embeddings and layers:
        raise InvalidInput(
            f"train_embeddings needs frozen_layers = 0, not {layers}: they stand below all layers"
        )
    backbone = model.base_model
    if not hasattr(backbone, "layers") or not hasattr(backbone, "norm"):
        raise InvalidInput(
            f"a learner needs a model of T5's or the Llama family's form, not {type(model).__name__}"
        )
    there = len(backbone.layers)
    if layers >= there:
        raise InvalidInput(f"frozen_layers = {layers}, but the model has {there} layers")
    for parameter in backbone.get_input_embeddings().parameters():
        parameter.requires_grad_(embeddings)
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(embeddings)
    for layer in backbone.layers[:layers]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    lower = with_layers(backbone, range(layers), norm=torch.nn.Identity())
    upper = with_layers(backbone, range(layers, there), norm=backbone.norm)
    _check_halves(backbone, lower, upper)
    above, below = unroll(upper) if written_out else None, unroll(lower) if layers else None
    return Split(lower, upper, above, below, embeddings)


@torch.no_grad()
def _check_halves(backbone: Any, lower: Any, upper: Any) -> None:
    """Raises InvalidInput for a backbone that is not its halves one after the other, tried on a few tokens."""
    if backbone.device.type == "meta":  # no weights: its form alone is asked for
        return
    ids = torch.tensor(probe_rows(backbone)[:1], device=backbone.device)
    between = lower(input_ids=ids, use_cache=False).last_hidden_state
    found = upper(inputs_embeds=between, use_cache=False).last_hidden_state
    if not same_states(backbone(input_ids=ids, use_cache=False).last_hidden_state, found):
        raise InvalidInput(
            f"{type(backbone).__name__} does more than its layers one after the other: it cannot be split for training"
        )


def layers_of(model: Any) -> list[Any]:
    """All layers from the lowest on, an encoder's before its decoder's; none where they have no name that is known."""
    if is_encoder_decoder(model):
        return [*model.get_encoder().block, *model.get_decoder().block]
    for name in _LAYERS:
        try:
            return list(attrgetter(name)(model.base_model))
        except AttributeError:
            continue
    return []


def freeze_lowest(model: Any, layers: int) -> None:
    """Leave the lowest `layers` layers out of training. InvalidInput where none would be left, or none is known."""
    found = layers_of(model)
    if layers and layers >= len(found):
        of = (
            f"the model has {len(found)} layers"
            if found
            else f"those of {type(model).__name__} are not known"
        )
        raise InvalidInput(f"frozen_layers = {layers}, but {of}")
    for layer in found[:layers]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
