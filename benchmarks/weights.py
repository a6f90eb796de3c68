"""Measures how weights travel: bytes and time of a sync against sending them whole, at real RL steps.

SmolLM2-135M in bfloat16, 20 PPO steps at rates 1e-6 and 1e-5 (weights_steps.py). Shares are means of steps 5 to 20;
every version is brought up from the one before by its delta and compared bit by bit. Links are a throttled proxy
between a learner's and a replica's process (weights_link.py); a time is from the call of `publish` to the engine
serving the version, all of hashing, copying, encoding, sending, applying and verifying, with deltas and without.

    delta_share_1e6, _1e5       bytes of a delta over those of the tensors that changed (the learner trains no
                                embeddings: over all bytes it would be a fifth less)
    vs_entropy                  the same over the entropy of the change: which elements, by tensor, and their
                                differences; the larger of the two rates
    speedup_1gbit, _100mbit     time without deltas over time with them, median over steps, rate 1e-6
    egress_copies_8             bytes that leave the learner for 8 replicas over those for one
    zlib_share_1e6, _1e5        plain xor of the bytes with zlib at level 1, for comparison

With TRIMTAB_WEIGHTS_RECORD=folder the steps are trained once and kept there.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.weights_fanout import egress
from benchmarks.weights_link import Sync, quiet_logs, syncs
from benchmarks.weights_steps import Record, State, recorded
from services.models import delta
from services.models.manifest import Manifest, Version, entries_of, whole_digest
from services.models.snapshot_delta import bits_of, brought_up, decoded_delta, encoded_delta, tensor_changes

RATES = {"1e6": 1e-6, "1e5": 1e-5}
STEPS, FIRST = 20, 5
GBIT, HUNDRED_MBIT = 125e6, 12.5e6
REPLICAS = 8
ZLIB_STEPS = 3


@dataclass(frozen=True, slots=True)
class Coding:
    """One step's delta: shares of all bytes, bytes over the entropy, seconds. zlib_share is 0 where not measured."""

    share: float
    vs_entropy: float
    encode_seconds: float
    apply_seconds: float
    zlib_share: float


def manifest_of(state: State, step: int) -> Manifest:
    """The manifest of a state."""
    entries = entries_of(state)
    return Manifest(Version(1, step, whole_digest(entries)), entries)


def codings(record: Record, first: int) -> list[Coding]:
    """Each step's delta from `first` on. RuntimeError where what comes out is not what went in, bit by bit."""
    results: list[Coding] = []
    before, old = record.start, manifest_of(record.start, 0)
    for step, state in enumerate(record.states(), 1):
        new = manifest_of(state, step)
        if step >= first:
            results.append(coding(before, old, state, new, with_zlib=len(results) < ZLIB_STEPS))
        before, old = state, new
    return results


def coding(before: State, old: Manifest, after: State, new: Manifest, *, with_zlib: bool) -> Coding:
    """One step there and back."""
    began = time.perf_counter()
    known = old.by_name()
    changes = {
        entry.name: tensor_changes(before[entry.name], after[entry.name])
        for entry in new.tensors
        if known[entry.name].digest != entry.digest
    }
    data = encoded_delta(changes, new)
    encoded = time.perf_counter()
    made = {
        entry.name: brought_up(entry, before[entry.name], part) for entry, part in decoded_delta(data, new)
    }
    applied = time.perf_counter()
    for name, tensor in after.items():
        if not torch.equal(made.get(name, before[name]).view(torch.int16), tensor.view(torch.int16)):
            raise RuntimeError(f"benchmarks.weights: {name} is not the same after its delta")
    total = sum(entry.size_bytes for entry in new.tensors if entry.name in changes)
    return Coding(
        len(data) / total,
        len(data) / entropy_bytes(before, after),
        encoded - began,
        applied - encoded,
        zlib_bytes(before, after) / total if with_zlib else 0.0,
    )


def entropy_bytes(before: State, after: State) -> float:
    """What any code needs that knows how many elements of a tensor change and how often each difference comes."""
    bits, differences = 0.0, []
    for name, tensor in after.items():
        changes = delta.difference(bits_of(before[name]), bits_of(tensor))
        share = len(changes) / max(1, tensor.numel())
        bits += tensor.numel() * _entropy(np.array([share, 1 - share]))
        differences.append(changes.differences)
    _, counts = np.unique(np.concatenate(differences), return_counts=True)
    return (bits + float(counts.sum()) * _entropy(counts / max(1, counts.sum()))) / 8


def _entropy(shares: Any) -> float:
    """Bits a symbol."""
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())


def zlib_bytes(before: State, after: State) -> int:
    """Plain xor and zlib, level 1."""
    packer = zlib.compressobj(1)
    size = sum(
        len(packer.compress((bits_of(before[name]) ^ bits_of(tensor)).tobytes()))
        for name, tensor in after.items()
    )
    return size + len(packer.flush())


def links(record: Record, *, quick: bool) -> dict[str, float]:
    """Times over both links, with deltas and without."""
    figures: dict[str, float] = {}
    for name, rate, whole in (
        ("1gbit", GBIT, 2 if quick else 4),
        ("100mbit", HUNDRED_MBIT, 1 if quick else 2),
    ):
        slow = syncs(record, whole, rate, deltas=False)
        fast = syncs(record, 4 if quick else 8, rate, deltas=True)
        for kind, seen in (("full", slow), ("delta", fast)):
            harness.say(
                f"  {name} {kind}: "
                + ", ".join(f"{one.seconds:.2f} s ({one.size / 1e6:.2f} MB)" for one in seen)
            )
            figures[f"{kind}_seconds_{name}"] = _median(seen)
        figures[f"speedup_{name}"] = _median(slow) / _median(fast)
        figures["publish_seconds"] = median(one.publish_seconds for one in fast)
    return figures


def _median(seen: Sequence[Sync]) -> float:
    return median(one.seconds for one in seen)


def fan_out(record: Record) -> float:
    """The learner's bytes for all replicas over those for one."""
    steps = 2
    one = asyncio.run(egress(record, 1, steps))
    all_of_them = asyncio.run(egress(record, REPLICAS, steps))
    harness.say(
        f"  the learner sends {one / 1e6:.2f} MB for one replica, {all_of_them / 1e6:.2f} for {REPLICAS}"
    )
    return all_of_them / one


def on_paper(share: float, encode: float, apply: float, elements: float) -> None:
    """What this would be for larger models: bytes and link are arithmetic, the passes scaled by bytes."""
    harness.say(
        f"  On paper, at the share measured here ({share:.2%}), 2 bytes a parameter, full = bytes / link, "
        "delta = share x bytes / link:"
    )
    for name, parameters in (("7B", 7e9), ("70B", 70e9)):
        size = 2 * parameters
        harness.say(
            f"    {name}: full {size / 1e9:.0f} GB, delta {share * size / 1e9:.2f} GB; "
            + "; ".join(
                f"{label}: {size / rate:,.0f} s against {share * size / rate:,.1f} s"
                for label, rate in (("1 Gb/s", GBIT), ("10 Gb/s", 10 * GBIT), ("100 Gb/s", 100 * GBIT))
            )
            + f"; encode and apply on one core as here: {encode * parameters / elements:,.0f} and "
            f"{apply * parameters / elements:,.0f} s, by shards of 1/64 each "
            f"{encode * parameters / elements / 64:,.1f} and {apply * parameters / elements / 64:,.1f} s"
        )


def measure(quick: bool) -> Mapping[str, float]:
    """All figures."""
    quiet_logs()
    steps, first = (8, 5) if quick else (STEPS, FIRST)
    figures: dict[str, float] = {}
    worst = 0.0
    for name, rate in RATES.items():
        began = time.perf_counter()
        record = recorded(rate, steps)
        harness.say(f"  rate {rate:g}: {steps} steps in {time.perf_counter() - began:.0f} s")
        seen = codings(record, first)
        worst = max(worst, mean(one.vs_entropy for one in seen))
        figures[f"delta_share_{name}"] = mean(one.share for one in seen)
        figures[f"zlib_share_{name}"] = mean(one.zlib_share for one in seen if one.zlib_share)
        figures[f"encode_seconds_{name}"] = median(one.encode_seconds for one in seen)
        figures[f"apply_seconds_{name}"] = median(one.apply_seconds for one in seen)
        if name == "1e6":
            figures |= links(record, quick=quick)
            figures["egress_copies_8"] = fan_out(record)
            elements = sum(tensor.numel() for tensor in record.start.values())
            on_paper(
                figures["delta_share_1e6"],
                figures["encode_seconds_1e6"],
                figures["apply_seconds_1e6"],
                elements,
            )
        del record
    figures["vs_entropy"] = worst
    return figures


BARS = {
    "delta_share_1e6": harness.at_most(0.015),
    "delta_share_1e5": harness.at_most(0.04),
    "vs_entropy": harness.at_most(1.5),
    "speedup_1gbit": harness.at_least(3),
    "speedup_100mbit": harness.at_least(15),
    "egress_copies_8": harness.at_most(2),
}

if __name__ == "__main__":
    harness.run("weights", measure, BARS)
