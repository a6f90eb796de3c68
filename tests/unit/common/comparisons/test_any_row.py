"""Whatever a row holds, it is read or refused in one line; nothing else is ever raised."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.comparisons import read
from services.common.errors import InvalidInput

FIELDS = [
    *("prompt", "chosen", "rejected", "margin", "confidence", "chosen_source"),
    *("query", "sample0", "sample1", "sample2", "best", "ranked", "answers", "ranks"),
    *("summaries", "choice", "info", "extra", "worker", "id", "post"),
    *("prompt_id", "item_id", "campaign", "annotator", "tree"),
    *("role", "content", "text", "answer", "rank", "model"),
]

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a", "b", "\n\nHuman: "])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": LEAVES}), max_size=3
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES | MESSAGES, max_size=6), max_size=3))
def test_any_row(rows: list[dict[str, Any]]) -> None:
    """With skipping every row is counted once; without, the first bad one is named in one line."""
    reading = read(rows, skip_bad_rows=True)
    records = list(reading)
    assert len(records) + reading.report.bad_rows == reading.report.rows == len(rows)
    for record in records:
        assert record.prompt
        assert len(record.answers) == len(record.sources) >= 2
        assert all(record.answers[better] != record.answers[worse] for better, worse in record.wins())
        assert record.wins() or record.ties()
    try:
        assert len(list(read(rows))) == len(rows)
    except InvalidInput as error:
        assert reading.report.bad_rows > 0
        assert str(error) == reading.report.first_bad
        assert len(str(error).splitlines()) == 1
