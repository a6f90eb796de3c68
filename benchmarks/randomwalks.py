"""Measures what the algorithms learn on random walks (services/common/tasks/randomwalks.py), graph seed 1000.

    ilql, ilql_beta0                      200 updates on the data alone, decoded at beta 100 and beta 0
    ppo                                   2,800 rollouts
    a2c, trpo, nlpo, grpo, rloo           6,000 rollouts

Each figure is the mean optimality of 100 drawn walks from each of the 20 starts at the end of the budget, over three
training seeds; `…_greedy` is that of the likeliest walk, `…_spread` the seeds' largest less their least, and
`nlpo_masked` the share of actions that NLPO's masks took away. For comparison: uniform walks 0.346, the data's mean
0.352, the best of the data from each start 0.992.

Online algorithms begin at a clone of the data, one for each seed, made here too. One process for each core, one
thread each. `--plot FILE` draws the curves; `--only a,b` takes fewer algorithms, `--seeds N` fewer seeds.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness

SEEDS = (1, 2, 3)
CLONE_EPOCHS = 20
ILQL_BETAS = (0.0, 1.0, 100.0)
ONLINE = ("trpo", "nlpo", "grpo", "rloo", "a2c", "ppo")
"""Longest first."""
QUICK_SHARE = 0.2
BARS = {
    "ilql": harness.at_least(0.90),
    "ppo": harness.at_least(0.95),
    "a2c": harness.at_least(0.85),
    "trpo": harness.at_least(0.85),
    "nlpo": harness.at_least(0.85),
    "nlpo_masked": harness.at_least(0.10),
    "grpo": harness.at_least(0.85),
    "rloo": harness.at_least(0.85),
}
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One algorithm with one seed: figures by name, and its curve."""

    figures: dict[str, float]
    curve: Curve


def clone(seed: int, share: float, file: Path) -> None:
    """In a process of its own: the clone of the data, where this seed's online algorithms begin."""
    import torch

    from benchmarks.randomwalks_model import cloned
    from services.common.tasks.randomwalks import random_walks

    torch.set_num_threads(1)
    torch.save(cloned(random_walks(), seed, epochs=max(1, round(share * CLONE_EPOCHS))).state_dict(), file)


def one_run(name: str, seed: int, share: float, file: Path) -> Run:
    """In a process of its own: one algorithm; the online ones from the clone in the file."""
    import torch

    from benchmarks import randomwalks_offline, randomwalks_online
    from benchmarks.randomwalks_model import Walker
    from services.common.tasks.randomwalks import random_walks

    torch.set_num_threads(1)
    task = random_walks()
    if name == "ilql":
        found, curve = randomwalks_offline.train(task, seed, ILQL_BETAS, share=share)
        names = {0.0: "ilql_beta0", 1.0: "ilql_beta1", 100.0: "ilql"}
        figures = {names[beta]: sampled for beta, (sampled, _) in found.items()}
        figures |= {f"{names[beta]}_greedy": greedy for beta, (_, greedy) in found.items()}
        return Run(figures, tuple(curve))
    start = Walker()
    start.load_state_dict(torch.load(file, weights_only=True))
    result = randomwalks_online.train(name, start, task, seed, share=share)
    figures = {name: result.sampled, f"{name}_greedy": result.greedy}
    return Run(figures | ({"nlpo_masked": result.masked} if name == "nlpo" else {}), result.curve)


def measure(
    quick: bool, names: tuple[str, ...], seeds: tuple[int, ...], plot: Path | None
) -> harness.Figures:
    """All figures; the plot is written where one is asked for."""
    share = QUICK_SHARE if quick else 1.0
    runs: dict[str, list[Future[Run]]] = {}
    workers = harness.machine_info()["cores"]
    assert isinstance(workers, int)  # noqa: S101 - on every system that Python knows
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        files = {seed: Path(folder) / f"clone-{seed}.pt" for seed in seeds}
        if names != ("ilql",):
            for future in [pool.submit(clone, seed, share, file) for seed, file in files.items()]:
                future.result()
        for name in names:
            runs[name] = [pool.submit(one_run, name, seed, share, files[seed]) for seed in seeds]
        done = {name: [future.result() for future in futures] for name, futures in runs.items()}
    figures: dict[str, float] = {}
    for of_seeds in done.values():
        for figure in of_seeds[0].figures:
            values = [run.figures[figure] for run in of_seeds]
            figures[figure] = sum(values) / len(values)
            figures[f"{figure}_spread"] = max(values) - min(values)
    if plot is not None:
        from benchmarks.randomwalks_plot import write_plot

        known = {"the data's mean 0.352": 0.352, "best in the data 0.992": 0.992}
        write_plot(plot, {name: [run.curve for run in of_seeds] for name, of_seeds in done.items()}, known)
    return figures


def main() -> None:
    """Take our own flags, leave the rest to the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.randomwalks", add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--plot", type=Path)
    mine, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    known = (*ONLINE, "ilql")
    names = tuple(mine.only.split(",")) if mine.only else known
    if wrong := [name for name in names if name not in known]:
        parser.error(f"--only {wrong[0]}: expected some of {','.join(known)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds = SEEDS[: mine.seeds]
    bars = {name: bar for name, bar in BARS.items() if name.partition("_")[0] in names}
    harness.run(
        "randomwalks", functools.partial(measure, names=names, seeds=seeds, plot=mine.plot), bars, own=parser
    )


if __name__ == "__main__":
    main()
