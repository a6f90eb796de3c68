"""benchmarks.generation's arithmetic, on seconds that a test made up."""

from __future__ import annotations

import pytest

from benchmarks.generation import figures, mixed_lengths
from benchmarks.generation_ways import Load


def test_mixed_lengths_span_what_they_say() -> None:
    """From 8 to 256 tokens, the same every time, not sorted."""
    lengths = mixed_lengths(64)
    assert (min(lengths), max(lengths), len(lengths)) == (8, 256, 64)
    assert lengths == mixed_lengths(64)
    assert lengths != sorted(lengths)


def test_figures_hold_ours_against_the_better_vllm() -> None:
    """Ratios are medians of rounds; of vLLM's modes the faster counts; the share is of the bound at 16."""
    todo = {"16": Load([[1]] * 2, [50, 50])}
    seconds = {"ours": {"16": [1.0, 2.0, 1.0]}, "generate": {"16": [4.0, 6.0, 4.5]}}
    seconds |= {"vllm_eager": {"16": [2.0, 3.0, 2.0]}, "vllm_compiled": {"16": [1.5, 3.0, 1.6]}}
    found = figures(seconds, todo, bound_16=400.0)
    assert found["vs_generate_16"] == pytest.approx(4.0)
    assert found["vs_vllm_16"] == pytest.approx(1.5)
    assert found["tokens_per_second_16"] == pytest.approx(100.0)
    assert found["vllm_tokens_per_second_16"] == pytest.approx(100 / 1.6)
    assert found["share_of_bandwidth_bound"] == pytest.approx(0.25)
