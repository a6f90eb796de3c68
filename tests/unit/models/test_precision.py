"""What `auto` means: the precision in which products are quicker here, and always the same one in a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from structlog.testing import capture_logs

from services.models import precision
from services.models.precision import bfloat16_is_quicker, prefers_bfloat16, torch_dtype


@pytest.fixture(autouse=True)
def not_asked_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor, and nothing of one test's answers left to the next."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cached in (prefers_bfloat16, precision._tell_if_slow):
        cached.cache_clear()
    yield
    for cached in (prefers_bfloat16, precision._tell_if_slow):
        cached.cache_clear()


def has(monkeypatch: pytest.MonkeyPatch, *, amx: bool, avx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)


def takes(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float) -> None:
    monkeypatch.setattr(
        precision, "product_seconds", {torch.bfloat16: bfloat16, torch.float32: float32}.__getitem__
    )


@pytest.mark.parametrize(("amx", "avx", "chosen"), [(True, True, "bfloat16"), (False, False, "float32")])
def test_what_is_known_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, chosen: str
) -> None:
    """AMX is quicker, emulation slower: every process of such a machine finds the same."""
    has(monkeypatch, amx=amx, avx=avx)
    monkeypatch.setattr(precision, "product_seconds", lambda *_: pytest.fail("measured"))
    assert torch_dtype("auto") is getattr(torch, chosen)


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.5, torch.bfloat16), (2.0, torch.float32)])
def test_the_quicker_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: torch.dtype
) -> None:
    """AVX-512's bfloat16 alone says nothing: time does."""
    has(monkeypatch, amx=False, avx=True)
    takes(monkeypatch, bfloat16, 1.0)
    assert torch_dtype("auto") is chosen


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of a process have one precision."""
    has(monkeypatch, amx=False, avx=True)
    takes(monkeypatch, 1.0, 2.0)
    first = torch_dtype("auto")
    takes(monkeypatch, 2.0, 1.0)
    assert torch_dtype("auto") is first is torch.bfloat16


def test_what_is_named_is_taken() -> None:
    """Whatever is quicker."""
    assert torch_dtype("float32") is torch.float32
    assert torch_dtype("bfloat16") is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "bfloat16", "lines"), [("bfloat16", 12.0, 1), ("bfloat16", 1.1, 0), ("auto", 12.0, 0)]
)
def test_who_names_the_slow_one_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, bfloat16: float, lines: int
) -> None:
    """Once a process, where it is much slower and was named: with how many times as long it takes."""
    has(monkeypatch, amx=False, avx=False)
    takes(monkeypatch, bfloat16, 1.0)
    with capture_logs() as told:
        torch_dtype(name)
        torch_dtype(name)
    assert [line["times_as_long"] for line in told] == [bfloat16] * lines


def test_measuring_changes_nothing() -> None:
    """The threads that passes compute on are as many as before, and every time it is the same that is quicker."""
    threads = torch.get_num_threads()
    assert len({bfloat16_is_quicker() for _ in range(3)}) == 1
    assert torch.get_num_threads() == threads
