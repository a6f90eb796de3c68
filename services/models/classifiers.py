"""Reward models as others publish them: sequence classification, causal models with a scalar head, and process
reward models, in Hugging Face folders of safetensors. Knows nothing of Trimtab's own folders (reward_model.py).

    architecture                      value                                  source
    ────────────────────────────────  ─────────────────────────────────────  ────────────────────────────
    …ForSequenceClassification        the label's logit; a decoder's at the  transformers; TRL RewardTrainer
                                      last token that is not padding's
    …ForTokenClassification           P(last label) at the end of each step  TRL PRMTrainer; arXiv 2305.20050
    …ForCausalLM with v_head.summary  the head at the last token             TRL AutoModelForCausalLMWithValueHead

A conversation goes through the model's chat template, whole, as such models are trained; without a template an
encoder takes prompt and answer as a pair, and a decoder one text. A lone text whose special tokens are left to the
model (`ScoreText.special_tokens`) is framed as the tokenizer frames one by default.

A decoder is what has one linear map of single states (`score`, or a scalar head); all others pool, and are encoders.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from services.common.errors import Corrupted, InvalidInput
from services.models.backbones import positions
from services.models.chat import closing_ids, rendered
from services.models.facts import ModelFacts, chat_template_digest, model_digest, tokenizer_fingerprint
from services.models.loading import (
    load_tokenizer,
    run_loader,
    serving_state,
    set_threads,
    switch_off_dropout,
    torch_device,
)
from services.models.packed import enable_packing, packed_states
from services.models.precision import torch_dtype
from services.models.scorer import Encoded, Reading, ScorerAbout, ScoreText, cut_left
from services.models.shared_rows import sharing_holds, states_at

Reduction = Literal["last", "min", "mean", "product"]
_REDUCTIONS: dict[Reduction, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "product": math.prod,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """How a score is read off. label: of several. step_*: process reward models only."""

    label: int = 0
    step_separator: str = "\n\n"
    step_reduction: Reduction = "min"
    max_tokens: int = 0


class Classifier:
    """A published reward model as a Scorer."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str, readout: Readout, *, head: torch.nn.Linear | None
    ) -> None:
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._readout = readout
        # A linear map of single states: then only the backbone runs, packed where it can be. None: the whole model.
        self._head = head
        kind = type(model).__name__
        self._process = kind.endswith("ForTokenClassification")
        # Where an end token pads, too, as TRL's trainer has it, what was trained is read before it.
        self._padding = _padding(model) if kind.endswith("ForSequenceClassification") else None
        self.packed = head is not None and enable_packing(model.base_model)
        self._facts = _facts(model, tokenizer, name, readout.max_tokens, head)
        # Rows that begin alike read that once.
        self.shared_rows = (
            self.packed and self._facts.architecture == "causal" and sharing_holds(model.base_model)
        )

    def about(self) -> ScorerAbout:
        """See Scorer.about."""
        return ScorerAbout(
            kind="process" if self._process else "model",
            facts=self._facts,
            chat=bool(self._facts.chat_template_digest),
            max_tokens=self._readout.max_tokens,
        )

    def encode(self, row: ScoreText) -> Encoded:
        """Token ids of a row; for a process reward model with the ends of its steps."""
        if self._process:
            return self._with_steps(row)
        if row.special_tokens:
            return self._lone(row.completion)
        if not row.rendered and getattr(self._tokenizer, "chat_template", None):
            messages = [*row.messages, ("assistant", row.completion)]
            ids = self._tokens(self._rendered(messages, generate=False))
            return cut_left(ids, len(ids), self._readout.max_tokens)
        if self._facts.architecture == "encoder":
            return self._pair(_plain(row), row.completion)
        ids = self._tokens(_plain(row) + row.completion)
        return cut_left(ids, len(ids), self._readout.max_tokens)

    def encode_ids(self, prompt: Sequence[int], completion: Sequence[int]) -> Encoded:
        """See Scorer.encode_ids. A process reward model's single step is the whole completion.

        A completion that ended, of a prompt, is followed by what the chat template puts there; ids without a prompt
        are a whole text and stay as they are.
        """
        for token in (*prompt, *completion):
            if not 0 <= token < self._facts.vocabulary_size:
                raise InvalidInput(
                    f"token id {token} is not in the vocabulary of {self._facts.vocabulary_size}"
                )
        ended = bool(prompt) and list(completion[-1:]) == [self._tokenizer.eos_token_id]
        ids = [*prompt, *completion, *(self._closing if ended else ())]
        row = cut_left(ids, len(prompt), self._readout.max_tokens)
        return replace(row, steps=(len(row.ids) - 1,)) if self._process else row

    def read(self, rows: Sequence[Encoded]) -> list[Reading]:
        """See Scorer.read."""
        places = [row.steps if self._process else (self._place(row.ids),) for row in rows]
        with torch.inference_mode():
            if self._head is None:
                return self._from_logits(rows, places)
            outputs = self._head(self._states(rows, places).to(self._head.weight.dtype)).float()
        parts = outputs.split([len(at) for at in places])
        return [self._reading(part) for part in parts]

    def _place(self, ids: Sequence[int]) -> int:
        return next((at for at in reversed(range(len(ids))) if ids[at] != self._padding), 0)

    def _reading(self, outputs: torch.Tensor) -> Reading:
        """outputs: [places, labels] float32."""
        if not self._process:
            return Reading(value=float(outputs[-1, self._readout.label]))
        if outputs.shape[1] == 1:
            steps = torch.sigmoid(outputs[:, 0]).tolist()
        else:
            steps = torch.softmax(outputs, dim=1)[:, -1].tolist()
        return Reading(value=_REDUCTIONS[self._readout.step_reduction](steps), steps=tuple(steps))

    def _states(self, rows: Sequence[Encoded], places: Sequence[Sequence[int]]) -> torch.Tensor:
        """Last hidden states of the named tokens of each row, row after row, [tokens, width]."""
        backbone, read = self._model.base_model, [row.ids for row in rows]
        if self.shared_rows:
            return states_at(backbone, read, places)
        if self.packed:
            states: Sequence[torch.Tensor] = packed_states(backbone, read).split([len(ids) for ids in read])
        else:
            ids, mask = self._padded(rows)
            states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.cat([part[list(at)] for part, at in zip(states, places, strict=True)])

    def _from_logits(self, rows: Sequence[Encoded], places: Sequence[tuple[int, ...]]) -> list[Reading]:
        ids, mask = self._padded(rows)
        options = {}
        if getattr(self._model.config, "type_vocab_size", 0) > 1:
            starts = torch.tensor([row.start for row in rows], device=ids.device)[:, None]
            options["token_type_ids"] = (
                torch.arange(ids.shape[1], device=ids.device) >= starts
            ).long() * mask
        logits = self._model(input_ids=ids, attention_mask=mask, **options).logits.float()
        if self._process:
            return [self._reading(logits[at, list(where)]) for at, where in enumerate(places)]
        return [self._reading(each[None]) for each in logits]

    def _padded(self, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask [rows, time], padded on the right."""
        known = (_padding(self._model), self._tokenizer.pad_token_id)
        fill = next((pad for pad in known if pad is not None and 0 <= pad < self._facts.vocabulary_size), 0)
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *([fill] * (width - len(row.ids)))] for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        device = self._model.device
        return ids.to(device), mask.to(device)

    @cached_property
    def _closing(self) -> tuple[int, ...]:
        """Ids that follow an answer's end token in a conversation."""
        return () if self._process else closing_ids(self._tokenizer)

    def _with_steps(self, row: ScoreText) -> Encoded:
        """Prompt, then each step and its separator; a step's score stands at the separator's last token."""
        if row.special_tokens:
            ids = self._before(row.completion)
        elif row.rendered:
            ids = self._tokens(_plain(row))
        elif getattr(self._tokenizer, "chat_template", None):
            ids = self._tokens(self._rendered(row.messages, generate=True))
        else:
            ids = self._tokens(_plain(row) + "\n")
        start, ends = len(ids), []
        separator = self._readout.step_separator
        for step in [part for part in row.completion.split(separator) if part.strip()] or [row.completion]:
            ids += self._tokens(step) + self._tokens(separator)
            ends.append(len(ids) - 1)
        if row.special_tokens:
            ids += self._lone_frame[1]
            start = len(ids)  # no second part begins in it: all tokens are of the first type
        cut = cut_left(ids, start, self._readout.max_tokens)
        return replace(cut, steps=tuple(end - cut.cut for end in ends if end >= cut.cut))

    def _lone(self, text: str) -> Encoded:
        """[CLS] text [SEP], or what else the tokenizer frames a lone text by; if it is too long, the frame stays."""
        first, last = self._lone_frame
        ids = [*self._before(text), *self._tokens(text)][len(first) :]
        kept = ids[-(self._readout.max_tokens - len(first) - len(last)) :]
        whole = (*first, *kept, *last)
        return Encoded(ids=whole, start=len(whole), cut=len(ids) - len(kept))

    def _before(self, text: str) -> list[int]:
        """The special tokens to put before a lone text; none where it begins with them."""
        first, _ = self._lone_frame
        return [] if self._tokens(text)[: len(first)] == first else list(first)

    def _pair(self, prompt: str, completion: str) -> Encoded:
        """[CLS] prompt [SEP] completion [SEP], as the tokenizer frames pairs; the prompt is cut first."""
        first, middle, last = self._frame
        before, after = self._tokens(prompt), self._tokens(completion)
        room = self._readout.max_tokens - len(first) - len(middle) - len(last)
        kept = after[-room:]
        head = before[len(before) - max(0, min(len(before), room - len(kept))) :]
        return Encoded(
            ids=(*first, *head, *middle, *kept, *last),
            start=len(first) + len(head) + len(middle),
            cut=len(before) + len(after) - len(head) - len(kept),
        )

    @cached_property
    def _lone_frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a lone text, seen on one letter."""
        ids, inner = list(self._tokenizer("a")["input_ids"]), self._tokens("a")
        at = ids.index(inner[0])
        return ids[:at], ids[at + len(inner) :]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int], list[int]]:
        """The special tokens before, between and after a pair, seen on a pair of one letter each."""
        ids = self._tokenizer("a", "b")["input_ids"]
        at = ids.index(self._tokens("a")[0])
        rest = ids[at + len(self._tokens("a")) :]
        to = rest.index(self._tokens("b")[0])
        return ids[:at], rest[:to], rest[to + len(self._tokens("b")) :]

    def _rendered(self, messages: Sequence[tuple[str, str]], *, generate: bool) -> str:
        return rendered(self._tokenizer, messages, generate=generate)

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def load_classifier(
    folder: Path, *, dtype: str, device: str, threads: int, name: str, readout: Readout
) -> Classifier:
    """A published reward model from its folder, in eval mode.

    Raises InvalidInput for an architecture that gives no score or a model that is not whole, Corrupted for weights
    that are not finite.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    set_threads(threads)
    config = run_loader(str(folder), AutoConfig.from_pretrained)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    loaders = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForTokenClassification": AutoModelForTokenClassification,
        "ForCausalLM": AutoModelForCausalLM,
    }
    loader = next((each for end, each in loaders.items() if architecture.endswith(end)), None)
    if loader is None:
        raise InvalidInput(f"{folder}: {architecture or 'a model without architecture'} gives no score")
    value_head = _value_head(folder, config) if loader is AutoModelForCausalLM else None
    model, found = run_loader(
        str(folder),
        loader.from_pretrained,
        dtype=torch_dtype(dtype),
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        raise InvalidInput(f"{folder}: the model is not whole, {missing[0]} is missing")
    model.to(torch_device(device)).eval()
    switch_off_dropout(model)
    head = value_head if value_head is not None else _linear_head(model)
    if head is not None:
        head.to(model.device)
    if any(
        not bool(torch.isfinite(each).all())
        for each in (*model.parameters(), *(head.parameters() if head else ()))
    ):
        raise Corrupted(f"{folder}: the reward model has weights that are not finite")
    labels = int(getattr(config, "num_labels", 1) or 1) if value_head is None else value_head.out_features
    if readout.label >= labels:
        raise InvalidInput(f"{folder}: label {readout.label} was asked for, the model has {labels}")
    tokenizer = load_tokenizer(str(folder))
    fit = positions(config)
    limit = min(readout.max_tokens or fit or 4096, fit or sys.maxsize)
    return Classifier(model, tokenizer, name, replace(readout, max_tokens=limit), head=head)


def _linear_head(model: Any) -> torch.nn.Linear | None:
    """The head where it is one linear map of a state of the backbone (decoders); else None (encoders pool)."""
    score = getattr(model, "score", None)
    return score if isinstance(score, torch.nn.Linear) else None


def _padding(model: Any) -> int | None:
    """The token that transformers takes for padding in this model."""
    found: int | None = model.config.get_text_config().pad_token_id
    return found


def _value_head(folder: Path, config: Any) -> torch.nn.Linear:
    """The scalar head that TRL stores beside a causal model's weights. InvalidInput where there is none."""
    width = int(config.hidden_size)
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if name.startswith("v_head.summary.")]  # noqa: SIM118
                found |= {name.rpartition(".")[2]: tensors.get_tensor(name).float() for name in names}
        except SafetensorError as error:
            raise InvalidInput(f"{file}: cannot be read ({error})") from error
    if found.get("weight") is None or found["weight"].shape != (1, width):
        raise InvalidInput(f"{folder}: a causal model without a scalar head (v_head.summary) gives no score")
    head = torch.nn.Linear(width, 1, bias="bias" in found)
    head.load_state_dict(found)
    return head.eval()


def _facts(
    model: Any, tokenizer: Any, name: str, max_tokens: int, head: torch.nn.Linear | None
) -> ModelFacts:
    state = serving_state(model)
    if head is not None:
        state |= {f"reward_head.{key}": value.detach() for key, value in head.named_parameters()}
    return ModelFacts(
        name=name,
        architecture="encoder" if head is None else "causal",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        chat_template_digest=chat_template_digest(tokenizer),
        model_digest=model_digest(state),
        context_length=max_tokens,
        vocabulary_size=int(model.get_input_embeddings().weight.shape[0]),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _plain(row: ScoreText) -> str:
    return "\n".join(content for _, content in row.messages)
