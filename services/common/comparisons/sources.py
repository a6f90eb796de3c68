"""Owns where rows come from: JSON lines, a JSON array, Parquet, a data set of the package `datasets`. Knows no schema.

Each yields (place, row); a line that is no JSON object yields a Malformed instead of a row, so that a reader may go
on after it. Parquet and `datasets` need the extra `data`, which is asked for only when such a source is named.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import parse_qsl

from services.common.comparisons.fields import Malformed, kind
from services.common.errors import ConfigError, InvalidInput, NotFound

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row | Malformed]]
Source = Path | str | Iterable[Row]

PREFIX = "datasets:"
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_OPTIONS = ("name", "split", "data_dir", "data_files", "revision")
_BATCH_ROWS = 1024


def rows(source: Source) -> Rows:
    """The rows of a file, of "datasets:NAME?split=…", or of mappings. NotFound, InvalidInput or ConfigError."""
    if not isinstance(source, str | Path):
        return _mappings("row", source)
    if str(source).startswith(PREFIX):
        return _data_set(str(source))
    path = Path(source)
    if path.is_dir():
        return _data_set(f"{PREFIX}{path}")
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    if path.name.endswith(".parquet"):
        return _parquet(path)
    if not path.name.endswith(_SUFFIXES):
        raise InvalidInput(f"{path}: expected a file that ends with {', '.join(_SUFFIXES)}")
    return _json(path)


def _mappings(place: str, given: Iterable[Row]) -> Rows:
    for number, row in enumerate(given, start=1):
        yield f"{place} {number}", row


def _json(path: Path) -> Rows:
    try:
        with _open(path) as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            begin = file.read(1)
            while begin.isspace():
                begin = file.read(1)
            file.seek(0)
            if begin == b"[":
                yield from _array(path, file)
            else:
                yield from _lines(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path}: not a whole gzip file ({error})") from None


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path, file: Iterable[bytes]) -> Rows:
    """Lines end at a newline and nowhere else: models write U+2028 inside strings."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{path}:{number}", _object(line)


def _object(line: bytes) -> Row | Malformed:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Malformed("row", "expected UTF-8 text")
    except (ValueError, RecursionError) as error:
        return Malformed("row", f"expected one JSON object: {error}")
    return _checked(row)


def _checked(row: object) -> Row | Malformed:
    if not isinstance(row, dict):
        return Malformed("row", f"expected a JSON object, got {kind(row)}")
    return row


def _array(path: Path, file: gzip.GzipFile | IO[bytes]) -> Rows:
    try:
        given = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: expected one JSON array or an object per line: {error}") from None
    for number, row in enumerate(given, start=1):
        yield f"{path}: row {number}", _checked(row)


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise _missing(f"{path}: reading Parquet", "pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # OSError: of its Thrift
        raise InvalidInput(f"{path}: after row {number}: not readable as Parquet ({_line(error)})") from None


def _data_set(source: str) -> Rows:
    """A folder of `save_to_disk`, or whatever `datasets.load_dataset` finds, streamed."""
    try:
        import datasets
    except ImportError:
        raise _missing(source, "datasets") from None
    name, _, query = source.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InvalidInput(f"{source}: expected options among {', '.join(_OPTIONS)}, got {unknown[0]}")
    try:
        yield from _mappings(f"{source}: row", _load(datasets, name, options))
    except InvalidInput:
        raise
    except Exception as error:  # the package raises whatever its readers raise
        raise InvalidInput(f"{source}: {type(error).__name__}: {_line(error)}") from None


def _load(datasets: Any, name: str, options: dict[str, str]) -> Iterable[Row]:
    split = options.pop("split", "")
    if _saved(Path(name)):
        saved = datasets.load_from_disk(name)
        if not isinstance(saved, dict):
            return cast(Iterable[Row], saved)
        if (split or "train") not in saved:
            raise InvalidInput(f"{PREFIX}{name}: expected a split among {', '.join(saved)}, got {split}")
        return cast(Iterable[Row], saved[split or "train"])
    return cast(Iterable[Row], datasets.load_dataset(name, split=split or "train", streaming=True, **options))


def _saved(path: Path) -> bool:
    return any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _missing(what: str, package: str) -> ConfigError:
    return ConfigError(
        f"{what} needs the package {package}, which is not there: pip install 'trimtab-platform[data]'"
    )


def _line(error: Exception) -> str:
    """The error's text in one line that is not too long."""
    return " ".join(str(error).split())[:300]
