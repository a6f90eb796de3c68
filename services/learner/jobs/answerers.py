"""Who answers a task's prompts: a model of this machine, or a policy service. Knows no metric.

    label=folder | label=file.gguf | label=package:NAME | label=run folder or checkpoint | label=host:port

`label=` may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.common.errors import InvalidInput, NotFound, Unavailable, UserError
from services.common.spec.service import Dtype, ModelSpec
from services.common.tasks.base import Messages, TaskRow
from services.learner.jobs.drawing import check_room, drawn
from services.models.loading import LoadedModel, encode_prompt, load_causal
from services.models.logprobs import completion_logprobs
from trimtab.clients.errors import TrimtabClientError, UnavailableError
from trimtab.clients.policy import PolicyClient

BATCH_ROWS = 16
_ADDRESS = re.compile(r"(?:grpc://)?([A-Za-z0-9_.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_LABELLED = re.compile(r"([A-Za-z0-9_. -]+)=(.+)")
_TOKEN_BUDGET = 4096

Heard = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn. temperature 0 is greedy; completions: of each prompt."""

    max_new_tokens: int
    temperature: float
    completions: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer: its text and its length in tokens of who gave it, the end token included."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model as it was named."""

    label: str
    place: str


def named(given: Sequence[str]) -> list[Named]:
    """Labels and places. Raises InvalidInput for two of one label."""
    found = []
    for one in given:
        labelled = _LABELLED.fullmatch(one)
        label, place = (labelled[1].strip(), labelled[2]) if labelled else (one, one)
        found.append(Named(label=label, place=place))
    labels = [one.label for one in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InvalidInput(f"--model: two are called {twice}: name them, for example --model before={twice}")
    return found


def answers(
    who: Named, rows: Sequence[TaskRow], sampling: Sampling, *, dtype: Dtype, threads: int, heard: Heard
) -> list[list[Answered]]:
    """[prompts][completions]. Raises the error tree, with the label before it."""
    try:
        if address := _address(who.place):
            return _asked(address, rows, sampling, heard)
        loaded = load_causal(ModelSpec(path=model_folder(who.place), dtype=dtype, threads=threads))
        return _drawn(loaded, rows, sampling, heard)
    except UserError as error:
        raise type(error)(f"{who.label}: {error}") from error


def model_folder(place: str) -> str:
    """A run's folder is its newest checkpoint's model, a checkpoint its model; anything else stays. Raises NotFound."""
    folder = Path(place).expanduser()
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if (folder / "checkpoints").is_dir():
        found = sorted((folder / "checkpoints").glob("step-*/model"))
        if not found:
            raise NotFound(f"{place}: the run has no checkpoint yet")
        return str(found[-1])
    return place


def judged(loaded: LoadedModel, rows: Sequence[TaskRow], texts: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Log-probs of the answers' tokens under another model, [prompts][completions] of [tokens]; its own tokens."""
    tokenizer = loaded.tokenizer
    pairs, places = [], []
    for at, (row, answered) in enumerate(zip(rows, texts, strict=True)):
        prompt = np.array(_encoded(tokenizer, row), np.int32)
        for n, text in enumerate(answered):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids:
                pairs.append((prompt, np.array(ids, np.int32)))
                places.append((at, n))
    found: list[list[Any]] = [[np.zeros(0, np.float32) for _ in answered] for answered in texts]
    if pairs:
        values = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=_TOKEN_BUDGET)
        for (at, n), value in zip(places, values, strict=True):
            found[at][n] = value
    return found


def _address(place: str) -> str:
    found = _ADDRESS.fullmatch(place)
    return f"{found[1]}:{found[2]}" if found and not Path(place).exists() else ""


def _encoded(tokenizer: Any, row: TaskRow) -> list[int]:
    if isinstance(row.prompt, str):
        return encode_prompt(tokenizer, text=row.prompt)
    if not getattr(tokenizer, "chat_template", None):
        return encode_prompt(tokenizer, text=_as_dialogue(row.prompt))
    return encode_prompt(tokenizer, messages=[{"role": role, "content": said} for role, said in row.prompt])


def _as_dialogue(prompt: Messages) -> str:
    """For a model without a chat template: as HH-RLHF writes it."""
    names = {"user": "Human", "assistant": "Assistant"}
    turns = [f"\n\n{names.get(role, role.capitalize())}: {said}" for role, said in prompt]
    return "".join(turns) + "\n\nAssistant:"


def _drawn(
    loaded: LoadedModel, rows: Sequence[TaskRow], sampling: Sampling, heard: Heard
) -> list[list[Answered]]:
    """Prompts of a length side by side; what is drawn for a prompt depends on the seed and on what it stands with."""
    encoded = [_encoded(loaded.tokenizer, row) for row in rows]
    check_room(loaded.model, encoded, sampling.max_new_tokens)
    order = sorted(range(len(rows)), key=lambda at: len(encoded[at]))
    made: list[list[Answered]] = [[] for _ in rows]
    wanted = [at for at in order for _ in range(sampling.completions)]
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        for start in range(0, len(wanted), BATCH_ROWS):
            part = wanted[start : start + BATCH_ROWS]
            texts = drawn(
                loaded.model,
                loaded.tokenizer,
                [encoded[at] for at in part],
                sampling.max_new_tokens,
                temperature=sampling.temperature,
            )
            for at, (text, tokens) in zip(part, texts, strict=True):
                made[at].append(Answered(text=text, tokens=tokens))
            heard(start + len(part), len(wanted))
    return made


def _asked(address: str, rows: Sequence[TaskRow], sampling: Sampling, heard: Heard) -> list[list[Answered]]:
    made: list[list[Answered]] = []
    try:
        client = PolicyClient(address)
    except ValueError as error:  # a key that cannot be sent, or would travel in the clear
        raise InvalidInput(f"policy at {address}: {error}") from None
    try:
        with client:
            for start in range(0, len(rows), BATCH_ROWS):
                part = rows[start : start + BATCH_ROWS]
                results = client.generate(
                    [_as_prompt(row) for row in part],
                    max_new_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    num_completions=sampling.completions,
                    seed=sampling.seed + start,
                )
                made += [
                    [Answered(text=one.text, tokens=sum(one.token_ids.shape)) for one in result.completions]
                    for result in results
                ]
                heard(len(made) * sampling.completions, len(rows) * sampling.completions)
    except UnavailableError as error:
        raise Unavailable(f"policy at {address}: {error}") from None
    except TrimtabClientError as error:
        raise InvalidInput(f"policy at {address}: {error}") from None
    return made


def _as_prompt(row: TaskRow) -> Any:
    if isinstance(row.prompt, str):
        return row.prompt
    return [{"role": role, "content": said} for role, said in row.prompt]
