"""Owns writing rows into a file: JSON lines, compressed or not, and Parquet. Knows no schema but the columns' types."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from services.common.errors import ConfigError, InvalidInput
from services.preference.records import RowWriter

_BATCH_ROWS = 1024


@contextmanager
def row_writer(file: Path) -> Iterator[RowWriter]:
    """A writer by the file's ending. The file appears whole at the end, or, after an error, not at all.

    InvalidInput for another ending, ConfigError where the extra `data` is missing.
    """
    aside = file.with_name(f".{file.name}.part")
    try:
        if file.name.endswith(".jsonl"):
            with aside.open("w", encoding="utf-8") as out:
                yield _Lines(out)
        elif file.name.endswith(".jsonl.gz"):
            with gzip.open(aside, "wt", encoding="utf-8") as zipped:
                yield _Lines(zipped)
        elif file.name.endswith(".parquet"):
            parquet = _Parquet(aside)
            yield parquet
            parquet.close()
        else:
            raise InvalidInput(f"{file}: expected a file that ends with .jsonl, .jsonl.gz or .parquet")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


class _Lines:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row, ensure_ascii=False) + "\n")


class _Parquet:
    """Batches of rows. `confidence` and `margin` may be missing, `answers` have places, other lists are messages."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ConfigError(
                f"{path.name.strip('.')}: writing Parquet needs the package pyarrow, which is not there: "
                "pip install 'trimtab-platform[data]'"
            ) from None
        self._pa, self._pq = pa, pq
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._schema: Any = None

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._schema = self._pa.schema([(name, self._type(name)) for name in self._names()])
            self._writer = self._pq.ParquetWriter(self._path, self._schema)
        self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _names(self) -> list[str]:
        return list(self._rows[0]) if self._rows else ["chosen", "rejected"]

    def _type(self, name: str) -> Any:
        text = self._pa.string()
        if name in ("confidence", "margin") or (self._rows and isinstance(self._rows[0][name], float)):
            return self._pa.float64()
        if self._rows and isinstance(self._rows[0][name], int):
            return self._pa.int64()
        if name == "answers":
            answer = [("answer", text), ("source", text), ("rank", self._pa.int64())]
            return self._pa.list_(self._pa.struct(answer))
        if self._rows and isinstance(self._rows[0][name], list):
            return self._pa.list_(self._pa.struct([("role", text), ("content", text)]))
        return text
