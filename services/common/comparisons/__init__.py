"""Owns how recorded human preferences are read: every known format in, three words out.

    reading = read("pairs.jsonl.gz", skip_bad_rows=True)     # also .jsonl, .json, .parquet, "datasets:NAME?split=train"
    for record in reading:                                   # Comparison | Ranking | BestOf, read as they are asked for
        for better, worse in record.wins(): ...              # indices of record.answers
    print(reading.report)                                    # what was found: rows, bad rows, duplicates, empty answers

A bad row raises InvalidInput "file:line: field: what was expected" unless bad rows are skipped. Formats: schemas.py.
"""

from services.common.comparisons.reading import Reading, Report, read
from services.common.comparisons.records import (
    BestOf,
    Comparison,
    Message,
    Origin,
    Ranking,
    Record,
)

__all__ = ["BestOf", "Comparison", "Message", "Origin", "Ranking", "Reading", "Record", "Report", "read"]
