"""Reward models: a backbone with a scalar head that maps a prompt and its completion to one number.

Two forms, told apart by `pooling`: an encoder, the completion's states averaged ("mean"), and a causal model,
the state of the last token ("last"). Both have their own tokenizer and take text. A folder of safetensors:
the backbone as Hugging Face writes it, `reward_head.safetensors`, and `reward.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from services.common.errors import Corrupted, InvalidInput, NotFound
from services.models.backbones import Pooling, load_backbone, positions
from services.models.chat import closing_ids, rendered
from services.models.facts import ModelFacts, chat_template_digest, model_digest, tokenizer_fingerprint
from services.models.forest import enable_forests, forest_states, plant, trees_of
from services.models.loading import (
    load_tokenizer,
    resolve,
    torch_device,
)
from services.models.packed import enable_packing, packed_states
from services.models.packing import micro_batches
from services.models.scorer import Encoded, Reading, ScorerAbout, ScoreText, cut_left
from services.models.shared_rows import sharing_holds, states_at
from services.models.unpadded import leave_out_padding
from services.models.unrolled import Unrolled, unroll

HEAD_FILE = "reward_head.safetensors"
SETTINGS_FILE = "reward.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """What is stored beside the weights. Score = gain * head + bias.

    closing: ids that follow an end token wherever a row ends with it, as the chat template has them: a causal model is
    read at the last one. Models from before there was such a thing have none and are read at the end token.
    """

    pooling: Pooling
    max_tokens: int = 512
    gain: float = 1.0
    bias: float = 0.0
    closing: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise ValueError(f"pooling {self.pooling!r} is neither mean nor last")
        if self.max_tokens < 8:
            raise ValueError(f"max_tokens {self.max_tokens} leaves no room for a prompt and an answer")
        if not (math.isfinite(self.gain) and math.isfinite(self.bias)):
            raise ValueError(f"gain {self.gain} and bias {self.bias} are not both finite")
        if any(type(token) is not int or token < 0 for token in self.closing):
            raise ValueError(f"closing {list(self.closing)} is no list of token ids")
        if len(self.closing) > self.max_tokens // 4:
            raise ValueError(f"closing has {len(self.closing)} ids, max_tokens is {self.max_tokens}")

    @classmethod
    def read(cls, text: str) -> RewardSettings:
        """From JSON as `asdict` gives it. ValueError or TypeError for what is no such thing."""
        found = json.loads(text)
        return cls(**{**found, "closing": tuple(found.get("closing", ()))})


class RewardModel(torch.nn.Module):
    """Backbone and head. Dropout is off; `forward` is differentiable, `read` and `score` are for serving."""

    def __init__(
        self, backbone: Any, tokenizer: Any, settings: RewardSettings, head: torch.nn.Linear, name: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.settings = settings
        self.head = head
        self.name = name
        self.packed = False
        self.shared_rows = False
        self.forests = False
        self._layers: Unrolled | None = None
        self._facts: ModelFacts | None = None

    def pack(self) -> None:
        """Serve without padding from now on, where the backbone allows it. Not for training.

        Rows that begin alike, as answers to one prompt do, read that once in a causal model.
        """
        self.packed = enable_packing(self.backbone)
        self.shared_rows = self.packed and self.settings.pooling == "last" and sharing_holds(self.backbone)

    def prepare_training(self, *, dropout: bool) -> None:
        """From now on no pass computes what it need not, where the backbone allows it; what is computed stays the same.

        A causal model reads a prompt once for all answers to it: without `dropout`, which each answer has its own of.
        An encoder leaves padding out.
        """
        if self.settings.pooling == "mean":
            self.packed = leave_out_padding(self.backbone)
        elif not dropout:
            # First: its trial is against the backbone's own attention.
            self._layers = unroll(self.backbone)
            self.forests = enable_forests(self.backbone)

    def encode(self, row: ScoreText) -> Encoded:
        """Token ids of a row, cut from the left to max_tokens.

        The end of the answer is what the score depends on most, so the oldest tokens go first.
        """
        return self._framed(*self._render(row))

    def encode_ids(self, prompt: Sequence[int], completion: Sequence[int]) -> Encoded:
        """The same from ids of this model's tokenizer, taken as they are: no template, no end token added.

        What follows an end token does follow one here, too.
        """
        size = int(self.backbone.get_input_embeddings().weight.shape[0])
        for token in (*prompt, *completion):
            if not 0 <= token < size:
                raise InvalidInput(f"token id {token} is not in the vocabulary of {size}")
        return self._framed(list(prompt), self._closed(list(completion)))

    def _framed(self, prompt: list[int], completion: list[int]) -> Encoded:
        limit = self.settings.max_tokens
        if self.settings.pooling == "last":
            return cut_left([*prompt, *completion], len(prompt), limit)
        whole = len(prompt) + len(completion)
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        completion = completion[-(limit - 3) :]
        prompt = prompt[len(prompt) - max(0, min(len(prompt), limit - 3 - len(completion))) :]
        return Encoded(
            ids=(first, *prompt, last, *completion, last),
            start=len(prompt) + 2,
            cut=whole - len(prompt) - len(completion),
        )

    def prompt_text(self, messages: Sequence[tuple[str, str]]) -> str:
        """What is read before an answer. InvalidInput for messages that the chat template refuses."""
        joined = "\n".join(content for _, content in messages)
        if self.settings.pooling == "mean":
            return joined
        if getattr(self.tokenizer, "chat_template", None):
            return rendered(self.tokenizer, messages, generate=True)
        return joined + "\n"

    def forward(self, rows: Sequence[ScoreText]) -> torch.Tensor:
        """Head outputs, without gain and bias, [rows] float32."""
        return self.head_outputs([self.encode(row) for row in rows])

    def head_outputs(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """Head outputs for encoded rows in one pass, [rows] float32."""
        return self._packed_outputs(encoded) if self.packed else self._padded_outputs(encoded)

    def _padded_outputs(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        device = self.head.weight.device
        width = max(len(row.ids) for row in encoded)
        ids = torch.zeros((len(encoded), width), dtype=torch.long)
        mask = torch.zeros((len(encoded), width), dtype=torch.long)
        pooled_over = torch.zeros((len(encoded), width))
        for at, row in enumerate(encoded):
            length = len(row.ids)
            ids[at, :length] = torch.tensor(row.ids)
            mask[at, :length] = 1
            if self.settings.pooling == "mean":
                pooled_over[at, row.start : length] = 1.0 / (length - row.start)
            else:
                pooled_over[at, length - 1] = 1.0
        options = {"attention_mask": mask.to(device)}
        if self._two_types:
            starts = torch.tensor([row.start for row in encoded])
            options["token_type_ids"] = ((torch.arange(width)[None, :] >= starts[:, None]) * mask).to(device)
        states = self.backbone(input_ids=ids.to(device), **options).last_hidden_state
        return self._head(torch.einsum("rt,rtw->rw", pooled_over.to(device), states.float()))

    def family_outputs(self, families: Sequence[Sequence[Encoded]]) -> torch.Tensor:
        """Head outputs of all rows, family after family, [rows] float32, differentiable.

        A family are the answers to one prompt: what they begin with is read once where beginnings are shared.
        """
        if not self.forests:
            return self.head_outputs([row for family in families for row in family])
        rows = [[row.ids for row in family] for family in families]
        forest = plant(rows, alike=self._layers is not None)
        return self._head(forest_states(self.backbone, forest, self._layers).float())

    def read(self, rows: Sequence[Encoded]) -> list[Reading]:
        """gain * head + bias of each row, in order, by one forward pass."""
        with torch.inference_mode():
            outputs = self.family_outputs([[row] for row in rows])
        gain, bias = self.settings.gain, self.settings.bias
        return [Reading(value=gain * output + bias) for output in outputs.tolist()]

    def score(self, rows: Sequence[ScoreText], *, token_budget: int = 4096) -> list[float]:
        """gain * head + bias of each row, in order, by as many passes as the budget of tokens asks for."""
        encoded = [self.encode(row) for row in rows]
        values = [0.0] * len(rows)
        for batch in micro_batches([len(row.ids) for row in encoded], token_budget):
            for index, reading in zip(batch, self.read([encoded[index] for index in batch]), strict=True):
                values[index] = reading.value
        return values

    def family_batches(self, families: Sequence[Sequence[Encoded]], token_budget: int) -> list[list[int]]:
        """Indices of families, as they go through the model together: by the tokens that are read of each.

        Padded, be it in the attention alone, a family counts as so many rows as the largest one, all as long as its
        longest.
        """
        if self.forests:
            return micro_batches(
                [sum(tree.tokens for tree in trees_of([row.ids for row in rows])) for rows in families],
                token_budget,
            )
        widest = max(len(rows) for rows in families)
        return micro_batches([widest * max(len(row.ids) for row in rows) for rows in families], token_budget)

    def family_scores(
        self, families: Sequence[Sequence[ScoreText]], *, token_budget: int = 4096
    ) -> list[list[float]]:
        """`score` of each family's rows; what the rows of one begin with is read once where beginnings are shared."""
        encoded = [[self.encode(row) for row in rows] for rows in families]
        scores: list[list[float]] = [[]] * len(families)
        with torch.inference_mode():
            for micro in self.family_batches(encoded, token_budget):
                values = self.family_outputs([encoded[index] for index in micro])
                parts = torch.split(values, [len(encoded[index]) for index in micro])
                for index, part in zip(micro, parts, strict=True):
                    scores[index] = (self.settings.gain * part + self.settings.bias).tolist()
        return scores

    @property
    def _two_types(self) -> bool:
        return self.settings.pooling == "mean" and getattr(self.backbone.config, "type_vocab_size", 0) > 1

    def _packed_outputs(self, rows: Sequence[Encoded]) -> torch.Tensor:
        if self.shared_rows:
            ends = [[len(row.ids) - 1] for row in rows]
            return self._head(states_at(self.backbone, [row.ids for row in rows], ends).float())
        types = (
            [[int(at >= row.start) for at in range(len(row.ids))] for row in rows]
            if self._two_types
            else None
        )
        states = packed_states(self.backbone, [row.ids for row in rows], types)
        lengths = [len(row.ids) for row in rows]
        if self.settings.pooling == "last":
            return self._head(states[[end - 1 for end in accumulate(lengths)]].float())
        parts = states.split(lengths)
        means = [part[row.start :].float().mean(0) for row, part in zip(rows, parts, strict=True)]
        return self._head(torch.stack(means))

    def _head(self, pooled: torch.Tensor) -> torch.Tensor:
        """[rows, width] float32 to [rows] float32."""
        return torch.nn.functional.linear(pooled, self.head.weight.float(), self.head.bias.float())[:, 0]

    def normalised(self, families: Sequence[Sequence[ScoreText]]) -> None:
        """Set gain and bias so that these reference answers, prompt by prompt, score mean 0, deviation 1.

        arXiv 1909.08593, 2.1. Raises InvalidInput where they all score the same, which no gain makes a deviation of.
        """
        self.settings = replace(self.settings, gain=1.0, bias=0.0)
        found = self.family_scores(families)
        values = torch.tensor([score for scores in found for score in scores], dtype=torch.float64)
        deviation = float(values.std(unbiased=False))
        if deviation < 1e-6:
            raise InvalidInput(f"the {len(values)} answers that the scale is set by all score the same")
        gain = 1.0 / deviation
        self.settings = replace(self.settings, gain=gain, bias=-gain * float(values.mean()))

    def about(self) -> ScorerAbout:
        """See Scorer.about. Kept after the first time: the weights of a model that is served do not change."""
        if self._facts is None:
            self._facts = self.facts()
        chat = self.settings.pooling == "last" and bool(self._facts.chat_template_digest)
        return ScorerAbout(
            kind="model",
            facts=self._facts,
            chat=chat,
            max_tokens=self.settings.max_tokens,
            gain=self.settings.gain,
            bias=self.settings.bias,
        )

    def facts(self) -> ModelFacts:
        """Who this is; the digest covers backbone and head."""
        return ModelFacts(
            name=self.name,
            architecture="encoder" if self.settings.pooling == "mean" else "causal",
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            chat_template_digest=chat_template_digest(self.tokenizer),
            model_digest=model_digest(
                {name: value.detach() for name, value in self.named_parameters()}
                | {
                    "gain": torch.tensor(self.settings.gain, dtype=torch.float64),
                    "bias": torch.tensor(self.settings.bias, dtype=torch.float64),
                }
                | ({"closing": torch.tensor(self.settings.closing)} if self.settings.closing else {})
            ),
            context_length=self.settings.max_tokens,
            vocabulary_size=int(self.backbone.get_input_embeddings().weight.shape[0]),
            dtype=str(self.backbone.dtype).removeprefix("torch."),
        )

    def save(self, folder: Path) -> None:
        """Write backbone, head, settings and tokenizer into an existing folder."""
        self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        head = {"weight": self.head.weight.detach().float(), "bias": self.head.bias.detach().float()}
        save_file({name: value.contiguous() for name, value in head.items()}, folder / HEAD_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")

    def _render(self, row: ScoreText) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the completion."""
        tokenize = self.tokenizer
        if self.settings.pooling == "mean":
            return (
                tokenize(self.prompt_text(row.messages), add_special_tokens=False)["input_ids"],
                tokenize(row.completion or " ", add_special_tokens=False)["input_ids"],
            )
        if row.rendered:
            text = "".join(content for _, content in row.messages) + row.completion
            ids = tokenize(text, add_special_tokens=False)["input_ids"]
            return [], self._closed([*self._missing_start(ids), *ids] if row.special_tokens else ids)
        prompt = self.prompt_text(row.messages)
        end = [] if tokenize.eos_token_id is None else [tokenize.eos_token_id]
        answer = tokenize(row.completion, add_special_tokens=False)["input_ids"]
        return tokenize(prompt, add_special_tokens=False)["input_ids"], self._closed([*answer, *end])

    def _closed(self, ids: list[int]) -> list[int]:
        """With what the chat template has after an end token, where the row ends with one."""
        ended = ids[-1:] == [self.tokenizer.eos_token_id]
        return [*ids, *self.settings.closing] if ended else ids

    def _missing_start(self, ids: list[int]) -> list[int]:
        """The begin token where training texts have one, from the chat template, and this one lacks it.

        Whoever leaves special tokens to us took it off. Others were never trained on, whatever the tokenizer adds.
        """
        begin = self.tokenizer.bos_token_id
        if begin is None or not getattr(self.tokenizer, "chat_template", None) or ids[:1] == [begin]:
            return []
        trained = rendered(self.tokenizer, (), generate=True)
        return [begin] if trained.startswith(self.tokenizer.bos_token) else []


def new_reward_model(
    path: str,
    *,
    dtype: str = "auto",
    threads: int = 0,
    device: str = "auto",
    seed: int = 0,
    max_tokens: int = 512,
) -> RewardModel:
    """A reward model to be trained, from a causal model or an encoder.

    Head: normal with standard deviation 1/sqrt(d+1), bias 0 (arXiv 1909.08593). Raises InvalidInput for a model with an
    encoder and a decoder.
    """
    folder = resolve(path)
    backbone, pooling = load_backbone(folder, dtype, threads)
    head = torch.nn.Linear(backbone.config.hidden_size, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        width = backbone.config.hidden_size
        head.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
        head.bias.zero_()
    limit = min(max_tokens, positions(backbone.config) or max_tokens)
    tokenizer = load_tokenizer(folder)
    closing = closing_ids(tokenizer) if pooling == "last" else ()
    settings = RewardSettings(pooling=pooling, max_tokens=limit, closing=closing)
    model = RewardModel(backbone, tokenizer, settings, head, path)
    model.to(torch_device(device))
    return model


def load_reward_model(
    path: str, *, dtype: str = "auto", threads: int = 0, device: str = "auto", name: str = ""
) -> RewardModel:
    """A trained reward model from its folder, in eval mode.

    Raises NotFound when the folder is no reward model, InvalidInput for one that cannot be read or is not whole,
    Corrupted for tensors that are not finite.
    """
    folder = Path(path).expanduser()
    if not (folder / SETTINGS_FILE).is_file() or not (folder / HEAD_FILE).is_file():
        raise NotFound(f"{path}: not a reward model folder ({SETTINGS_FILE} and {HEAD_FILE} are needed)")
    try:
        settings = RewardSettings.read((folder / SETTINGS_FILE).read_text())
        tensors = load_file(folder / HEAD_FILE)
    except (ValueError, TypeError, AttributeError, RecursionError, OSError, SafetensorError) as error:
        raise InvalidInput(f"{path}: reward model settings or head cannot be read ({error})") from error
    backbone, _ = load_backbone(str(folder), dtype, threads, pooling=settings.pooling)
    settings = replace(
        settings, max_tokens=min(settings.max_tokens, positions(backbone.config) or settings.max_tokens)
    )
    size = int(backbone.get_input_embeddings().weight.shape[0])
    if any(token >= size for token in settings.closing):
        raise InvalidInput(f"{path}: closing {list(settings.closing)} is not in the vocabulary of {size}")
    head = torch.nn.Linear(backbone.config.hidden_size, 1)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes != {name: tuple(value.shape) for name, value in head.state_dict().items()}:
        raise InvalidInput(f"{path}: the head {shapes} does not fit a backbone of width {head.in_features}")
    head.load_state_dict(tensors)
    model = RewardModel(backbone, load_tokenizer(str(folder)), settings, head, name or folder.name)
    if any(not bool(torch.isfinite(value).all()) for value in model.parameters()):
        raise Corrupted(f"{path}: the reward model has weights that are not finite")
    model.to(torch_device(device)).eval()
    return model
