"""Measures generation: our default engine, transformers.generate and vLLM for the processor, in alternation.

SmolLM2-135M in bfloat16, prompts of 20 tokens from HH dialogues, sampled at temperature 1; ours and vLLM with the
log-prob of each token. vLLM stands at the better of its eager and compiled modes, load by load. Ours has the
C library's settings of a policy service (large pages), and so has `generate`, which shares its process; vLLM is as it
comes.

    16, 64      so many prompts, 48 new tokens each
    mixed       64 prompts, completions of 8 to 256 tokens; only wanted tokens count
    vs_*        their time over ours, median over the rounds
    share_of_bandwidth_bound    tokens/s at 16 over what reading every weight once a step would allow
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import torch

from benchmarks import harness
from benchmarks.generation_ways import Generate, Load, Ours, Way, vllm
from benchmarks.public_data import chosen_dialogues, data_file
from benchmarks.scoring_servers import installed
from benchmarks.scoring_setup import PACKAGE
from services.common.spec.service import ModelSpec
from services.models.loading import LoadedModel, load_causal, serving_state

PROMPT_TOKENS = 20
NEW_TOKENS = 48
SHORTEST, LONGEST = 8, 256
MODES = ("eager", "compiled")
# Tokens/s below which a peer is not at its best, so that beating it means nothing.
FLOORS = {("generate", "16"): 140.0, ("vllm", "16"): 350.0, ("vllm", "64"): 450.0}
# More than the processor's last cache, where that is known; the weights of a small model may fit into it.
READ_BYTES = 1 << 30

Seconds = Mapping[str, Mapping[str, Sequence[float]]]


def prompts(tokenizer: object, count: int) -> list[list[int]]:
    """The first PROMPT_TOKENS ids of the first dialogues that have so many."""
    found: list[list[int]] = []
    path = data_file("generation")
    for dialogue in chosen_dialogues(path):
        ids = tokenizer(dialogue)["input_ids"]  # type: ignore[operator]
        if len(ids) >= PROMPT_TOKENS:
            found.append(ids[:PROMPT_TOKENS])
        if len(found) == count:
            return found
    raise SystemExit(f"benchmarks.generation: {path} has only {len(found)} dialogues of {count}")


def mixed_lengths(count: int) -> list[int]:
    """Evenly spread over SHORTEST … LONGEST, in an order that is always the same."""
    lengths = np.linspace(SHORTEST, LONGEST, count).round().astype(int)
    return [int(length) for length in np.random.default_rng(0).permutation(lengths)]


def loads(tokenizer: object) -> dict[str, Load]:
    """What is generated, by name."""
    texts = prompts(tokenizer, 64)
    return {
        "16": Load(texts[:16], [NEW_TOKENS] * 16),
        "64": Load(texts, [NEW_TOKENS] * 64),
        "mixed": Load(texts, mixed_lengths(64)),
    }


def bound(loaded: LoadedModel, rows: int) -> float:
    """Tokens/s if a step of so many rows took exactly as long as reading every weight once."""
    weights = sum(tensor.nbytes for tensor in serving_state(loaded.model).values())
    return rows * read_bandwidth() / weights


def read_bandwidth() -> float:
    """Bytes/s of a sum over READ_BYTES with all threads: the best of ten."""
    buffer = torch.zeros(READ_BYTES // 8, dtype=torch.int64)
    best = np.inf
    for _ in range(10):
        began = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - began)
    return READ_BYTES / best


def run_rounds(ways: Mapping[str, Way], todo: Mapping[str, Load], rounds: int) -> Seconds:
    """Seconds by way and load; who goes first moves on from round to round."""
    seconds: dict[str, dict[str, list[float]]] = {way: {name: [] for name in todo} for way in ways}
    for way in ways.values():
        way.seconds(Load(todo["16"].prompts, [4] * 16))
    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name, load in todo.items():
            for each in order:
                seconds[each][name].append(ways[each].seconds(load))
            speeds = ", ".join(f"{each} {load.tokens / seconds[each][name][-1]:.0f}" for each in ways)
            harness.say(f"  round {number + 1}, {name}: {speeds} tokens/s")
    return seconds


def figures(seconds: Seconds, todo: Mapping[str, Load], bound_16: float) -> dict[str, float]:
    """All figures of the seconds."""
    found: dict[str, float] = {}
    modes = [way for way in seconds if way.startswith("vllm")]
    for name in todo:
        best = min(modes, key=lambda way: median(seconds[way][name])) if modes else None
        for peer, way in (("generate", "generate"), ("vllm", best)):
            if way is not None:
                pairs = zip(seconds[way][name], seconds["ours"][name], strict=True)
                found[f"vs_{peer}_{name}"] = median(theirs / ours for theirs, ours in pairs)
                found[f"{peer}_tokens_per_second_{name}"] = todo[name].tokens / median(seconds[way][name])
        found[f"tokens_per_second_{name}"] = todo[name].tokens / median(seconds["ours"][name])
    found["bandwidth_bound_tokens_per_second"] = bound_16
    found["share_of_bandwidth_bound"] = found["tokens_per_second_16"] / bound_16
    return found


def say_broken(found: Mapping[str, float]) -> None:
    """Name every peer that is slower than it should be."""
    for (peer, name), floor in FLOORS.items():
        speed = found.get(f"{peer}_tokens_per_second_{name}", floor)
        if speed < floor:
            harness.say(
                f"  BROKEN COMPARISON: {peer} made {speed:.0f} tokens/s with {name} prompts, below {floor:.0f}"
            )


def measure(quick: bool) -> dict[str, float]:
    """All figures."""
    spec = ModelSpec(path=PACKAGE, dtype="bfloat16")
    loaded, rounds = load_causal(spec), 1 if quick else 3
    todo = loads(loaded.tokenizer)
    modes = MODES if installed("vllm") else ()
    if not modes:
        harness.say("  vLLM is not installed (make peer-vllm): it is left out")
    with vllm(loaded.folder, modes) as servers:
        ways: dict[str, Way] = {"ours": Ours(loaded), "generate": Generate(load_causal(spec))}
        ways |= {f"vllm_{mode}": server for mode, server in servers.items()}
        seconds = run_rounds(ways, todo, rounds)
        found = figures(seconds, todo, bound(loaded, 16))
    say_broken(found)
    return found


BARS = {
    **{f"vs_generate_{name}": harness.at_least(3.5) for name in ("16", "64", "mixed")},
    **{f"vs_vllm_{name}": harness.at_least(1.3) for name in ("16", "64", "mixed")},
}

if __name__ == "__main__":
    harness.with_large_pages()
    harness.run("generation", measure, BARS)
