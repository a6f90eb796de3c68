"""All readers of data sets, over JSON lines, JSON, gzip and Parquet: InvalidInput with the file, or records.

Comparisons in every known schema, prompts of runs and tasks, demonstrations, offline rows, texts.
"""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.demo.collect import read_prompts
from services.common.comparisons import read
from services.common.errors import InvalidInput
from services.common.spec.run import DataSpec, RunSpec
from services.common.tasks.registry import find_task, task_names, task_rows
from services.learner.jobs.demonstrations import read_demonstrations
from services.learner.offline.rows import load_rows
from services.learner.pretraining import load_texts
from services.learner.prompts import load_prompts
from tests.fakes.tiny_models import tiny_tokenizer
from tests.fuzz import odd
from tests.fuzz.surface import Surface, documented

_TURNS = [{"role": "user", "content": "Hi"}]
_ANSWER = [{"role": "assistant", "content": "Hello"}]
_HH = "\n\nHuman: Hi\n\nAssistant: Hello"
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": 0.5, "prompt_id": 7, "confidence": 0.5},
    {"prompt": _TURNS, "chosen": _ANSWER, "rejected": [{"role": "assistant", "content": "No"}], "tree": "t"},
    {"chosen": _HH, "rejected": _HH + "?", "annotator": "ann", "campaign": "c", "item_id": "i"},
    {
        "info": {"post": "p", "title": "t", "subreddit": "s"},
        "summaries": [{"text": "a", "policy": "x"}, {"text": "b", "policy": "y"}],
        "choice": 1,
        "worker": "w",
        "extra": {"confidence": 7},
    },
    {"query": "q", "sample0": "a", "sample1": "b", "sample2": "c", "best": 2},
    {"prompt": "Hi", "ranked": ["a", ["b", "c"], "d"]},
    {"prompt": "Hi", "answers": ["a", "b", "c"], "ranks": [1, 2, 2]},
    {
        "prompt": "Hi",
        "answers": [{"answer": "a", "model": "m", "rank": 1.0}, {"answer": "b", "model": "n", "rank": 2}],
    },
    {"prompt": "Hi", "completion": "Hello", "reward": 1.5, "split": "train"},
    {"messages": [*_TURNS, *_ANSWER], "prompt_id": "p1"},
    {
        "text": "some text to learn",
        "label": 1,
        "question": "q",
        "answer": "#### 4",
        "summary": "s",
        "document": "d",
    },
)
Reader = Callable[[Path], Any]
Sent = tuple[str, str, bytes]


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """One file a suffix, written anew for each input."""
    readers = _readers()
    tables = [_table([row]) for row in ROWS if "ranked" not in row] + [_table(_STRANGE)]

    def draw(rng: Random) -> Sent:
        name = rng.choice(list(readers))
        suffix = rng.choice((".jsonl", ".jsonl", ".json", ".jsonl.gz", ".parquet"))
        if suffix == ".parquet":
            data = rng.choice(tables) if rng.random() < 0.7 else _odd_table(rng, rng.choice(tables))
            return name, suffix, odd.damaged(rng, data) if rng.random() < 0.6 else data
        data = _text(rng, whole=suffix == ".json")
        if suffix != ".jsonl.gz":
            return name, suffix, data
        packed = gzip.compress(data, 1, mtime=0)
        return name, suffix, odd.damaged(rng, packed) if rng.random() < 0.3 else packed

    def run(sent: Sent) -> str:
        name, suffix, data = sent
        path = folder / f"data{suffix}"
        path.write_bytes(data)
        return f"{name} {documented(lambda: _named(readers[name], path), InvalidInput)}"

    def good() -> None:
        path = folder / "good.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:8]))
        assert len(list(read(path))) == 8, "a sound row is not read"

    good()
    yield Surface(draw, run, good)


def _named(reader: Reader, path: Path) -> None:
    try:
        reader(path)
    except InvalidInput as error:
        assert str(path) in str(error) or "there is no prompt" in str(error), "an error that names no file"
        assert "\n" not in str(error), f"more than one line: {str(error)[:200]!r}"
        assert len(str(error)) < 3_000, f"{len(str(error))} characters are no clear line"
        raise


def _readers() -> dict[str, Reader]:
    tokenizer = tiny_tokenizer()
    offline = {
        kind: RunSpec.model_validate(
            {"model": {"path": "/m"}, "data": {"prompts": "x"}, "algorithm": {"kind": kind}}
        )
        for kind in ("dpo", "ilql")
    }

    def rows(kind: str) -> Reader:
        def load(path: Path) -> Any:
            spec = offline[kind].model_copy(update={"data": DataSpec(prompts=str(path))})
            return load_rows(spec, tokenizer, context_length=1000)

        return load

    def prompts(path: Path) -> Any:
        return load_prompts(DataSpec(prompts=str(path)), tokenizer, context_length=1000, max_new_tokens=8)

    def task(name: str) -> Reader:
        return lambda path: task_rows(find_task(name), data=str(path), limit=50)

    return {
        "comparisons": lambda path: list(read(path)),
        "comparisons, skipping": _skipping,
        "prompts": prompts,
        "demonstrations": read_demonstrations,
        "texts": lambda path: load_texts(DataSpec(prompts="x", texts=str(path)), tokenizer),
        "demo prompts": read_prompts,
        **{kind: rows(kind) for kind in offline},
        **{f"task {name}": task(name) for name in task_names()},
    }


def _skipping(path: Path) -> None:
    """Bad rows are counted and left out; what remains is an InvalidInput about the file as a whole."""
    reading = read(path, skip_bad_rows=True, drop_duplicates=True)
    records = list(reading)
    assert reading.report.records == len(records), "another number of records than was counted"
    assert reading.report.rows >= len(records) + reading.report.bad_rows
    str(reading.report)
    for record in records:
        record.wins()


_LEAVES = ("a" * 300, "user", "assistant", _HH, "Human:", "\ud800", "\n\nAssistant:")


def _text(rng: Random, *, whole: bool) -> bytes:
    rows = [rng.choice(ROWS) for _ in range(rng.randrange(1, 4))]
    made: Any = [odd.changed(rng, row, _LEAVES) if rng.random() < 0.6 else row for row in rows]
    if rng.random() < 0.03:
        made.append(rng.choice((1, None, "text", [])))
    if rng.random() < 0.02:
        return rng.choice(
            (b"[" * 100_000, b'{"chosen":' * 50_000, b"\xef\xbb\xbf{}", b"9" * 5_000, b"", b"\n\n", b"[]")
        )
    shown = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in made]
    data = (f"[{','.join(shown)}]" if whole else "\n".join(shown)).encode("utf-8", "replace")
    return odd.damaged(rng, data) if rng.random() < 0.2 else data


# Columns of other kinds than any schema has.
_STRANGE = [
    {
        "prompt": b"\xff\xfe",
        "chosen": decimal.Decimal("1.50"),
        "rejected": dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        "margin": dt.timedelta(seconds=3),
        "prompt_id": 2**62,
        "confidence": float("nan"),
        "messages": [{"role": None, "content": None}],
        "text": None,
        "completion": [1, 2, 3],
        "reward": float("inf"),
        "question": {"a": [b"x"]},
    }
]


def _table(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def _odd_table(rng: Random, otherwise: bytes) -> bytes:
    try:
        return _table([{str(k): v for k, v in odd.changed(rng, rng.choice((*ROWS, *_STRANGE))).items()}])
    except (pa.ArrowException, AttributeError, TypeError, OverflowError, UnicodeError):
        return otherwise  # no table has such a row
