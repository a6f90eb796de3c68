"""Our losses and their gradients against those of TRL and of trlX's formula, on the same tensors.

GRPO with its kin, RLOO and DPO: `.venv-peers/trl` (TRL 1.16), from the scores on. PPO: `.venv-peers/trl112` (TRL 1.12),
whose rollouts ours then takes. ILQL: trlX's published formula, written down apart (peers/ilql_formula.py). Figures are
the largest absolute differences over all cases; a gradient is by the log-probs, values, logits and Qs of every token.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import at_most, run, say
from benchmarks.losses_cases import (
    GROUP,
    LONGEST,
    ROWS,
    Case,
    dpo_cases,
    grpo_cases,
    ilql_cases,
    ppo_cases,
    rloo_cases,
)
from services.common.spec.algorithms import GrpoSpec, ImportanceSpec, KlSpec, PpoSpec, RlooSpec
from services.common.spec.library import DpoSpec, IlqlSpec
from services.learner.algorithms.base import Algorithm, Current, Part, Rollouts, taken
from services.learner.algorithms.dpo import Pair, dpo_loss, sequence_logprobs
from services.learner.algorithms.ilql import Heads, Transitions, ilql_loss
from services.learner.algorithms.importance import importance
from services.learner.algorithms.registry import algorithm_of

Answer = dict[str, Any]
ROOT = Path(__file__).parents[1]
BAR = at_most(1e-5)
PEERS = {
    "trl_losses": (".venv-peers/trl/bin/python", "make peer-trl"),
    "trl_ppo": (".venv-peers/trl112/bin/python", "make peer-trl112"),
    "ilql_formula": (sys.executable, "make setup"),
}


def measure(quick: bool) -> dict[str, float]:
    """Largest differences of each algorithm's loss and gradients."""
    torch.manual_seed(0)
    every = 6 if quick else 1
    cases: dict[str, list[Case]] = {
        "grpo": grpo_cases()[::every],
        "rloo": rloo_cases()[::every],
        "dpo": dpo_cases(),
        "ilql": ilql_cases(),
        "ppo": ppo_cases()[::every],
    }
    theirs = {kind: answers for peer in PEERS for kind, answers in asked(peer, cases).items()}
    ours: dict[str, Callable[[Case], Answer]] = {"grpo": grpo, "rloo": rloo, "dpo": dpo, "ilql": ilql}
    figures: dict[str, float] = {}
    for kind, answer in ours.items():
        pairs = [(answer(case), other) for case, other in zip(cases[kind], theirs[kind], strict=True)]
        figures |= differences(kind, pairs)
    updates = [
        pair for case, told in zip(cases["ppo"], theirs["ppo"], strict=True) for pair in ppo(case, told)
    ]
    return figures | differences("ppo", updates)


def asked(peer: str, cases: dict[str, list[Case]]) -> dict[str, list[Answer]]:
    """What a peer says to the cases, by algorithm."""
    python, how = PEERS[peer]
    if not (ROOT / python).exists():
        raise SystemExit(f"benchmarks.losses: {python} is not there: {how}")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.pt", Path(folder) / "answers.pt"
        torch.save(cases, source)
        done = subprocess.run(  # noqa: S603 - our own program
            [ROOT / python, "-m", f"benchmarks.peers.{peer}", source, target],
            cwd=ROOT,
            env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"benchmarks.losses: {peer} failed:\n{done.stderr[-2000:]}")
        answers: dict[str, list[Answer]] = torch.load(target, weights_only=True)
    return answers


def differences(kind: str, pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, float]:
    """The largest of the losses and of the gradients; how many were compared, and how large a loss was at most."""
    losses, gradients = [0.0], [0.0]
    for one, other in pairs:
        losses.append(float((one["loss"] - other["loss"]).abs()))
        if not any(bool(theirs.any()) for theirs in other["gradients"]):
            raise SystemExit(f"benchmarks.losses: {kind}: the peer gave no gradient to compare with")
        for ours, theirs in zip(one["gradients"], other["gradients"], strict=True):
            gradients.append(float((ours - theirs).abs().max()))
    largest = max(float(other["loss"].abs()) for _, other in pairs)
    say(f"{kind}: {len(pairs)} losses compared, the largest of them {largest:.3g}")
    return {f"{kind}_loss": max(losses), f"{kind}_gradient": max(gradients), f"{kind}_cases": len(pairs)}


def grpo(case: Case) -> Answer:
    """GRPO's loss and its gradient by the current log-probs."""
    low, top = case["clips"]
    spec = GrpoSpec(
        **case["settings"],
        importance_sampling=ImportanceSpec(mode=case["mode"], clip_min=low, clip_max=top),
    )
    factors = importance(spec.importance_sampling, case["old"], case["behaviour"], case["mask"])
    return grouped(spec, case, factors)


def rloo(case: Case) -> Answer:
    """RLOO's."""
    return grouped(RlooSpec(**case["settings"]), case, torch.ones_like(case["mask"]))


def grouped(spec: GrpoSpec | RlooSpec, case: Case, factors: torch.Tensor) -> Answer:
    """Targets from the scores, then the loss of the whole batch."""
    rollouts = Rollouts(
        old_logprobs=case["old"],
        reference_logprobs=case["reference"],
        old_values=torch.zeros_like(case["old"]),
        mask=case["mask"],
        importance=factors,
        scores=case["scores"],
        groups=torch.arange(ROWS) // GROUP,
    )
    algorithm: Algorithm[Any] = algorithm_of(spec, max_completion_length=LONGEST)
    targets = algorithm.targets(rollouts, spec.beta)
    now = case["current"].clone().requires_grad_()
    part = Part(rollouts, targets, tokens=float(case["mask"].sum()), rows=ROWS)
    loss = algorithm.loss(Current(now, torch.zeros_like(now)), part)
    return answered(loss.total, [now])


def ppo(settings: Case, told: Case) -> list[tuple[Answer, Answer]]:
    """Every update of TRL's, ours beside it, on its rollouts and on what its models said."""
    names = {"cliprange": "clip_ratio", "cliprange_value": "clip_value", "vf_coef": "value_coefficient"}
    names |= {"lam": "gae_lambda", "gamma": "gamma", "whiten_rewards": "whiten_rewards"}
    kl = KlSpec(coefficient=settings["kl_coef"], estimator=settings["kl_estimator"])
    spec = PpoSpec(kl=kl, **{ours: settings[theirs] for theirs, ours in names.items()})
    mask, valued = told["mask"].float(), told["value_mask"].float()
    if bool((mask == valued).all()):
        raise SystemExit(
            "benchmarks.losses: ppo: no completion ends early: its value one past the end is not seen"
        )
    rollouts = Rollouts(
        old_logprobs=told["logprobs"] * mask,
        reference_logprobs=told["ref_logprobs"] * mask,
        old_values=told["values"],
        mask=mask,
        importance=torch.ones_like(mask),
        scores=told["scores"],  # the penalty of a missing end is in them already
        groups=torch.arange(len(mask)),
        value_mask=valued,
    )
    algorithm: Algorithm[Any] = algorithm_of(spec, max_completion_length=LONGEST)
    targets = algorithm.targets(rollouts, spec.kl.coefficient)
    found = []
    for update in told["updates"]:
        rows = update["rows"]
        logprobs, values = (one.requires_grad_() for one in update["current"])
        whole = taken(rollouts, rows)
        part = Part(
            whole,
            taken(targets, rows),
            tokens=float(whole.mask.sum()),
            rows=len(rows),
            values=float(whole.valued.sum()),
        )
        loss = algorithm.loss(Current(logprobs * whole.mask, values), part)
        found.append((answered(loss.total, [logprobs, values]), update))
    return found


def dpo(case: Case) -> Answer:
    """DPO's, by the log-probs of the chosen and of the rejected tokens."""
    moving, sides = [], []
    for side in ("chosen", "rejected"):
        mask, now = case[f"{side}_mask"], case[f"{side}_policy"].clone().requires_grad_()
        moving.append(now)
        sides.append(Pair(sequence_logprobs(now, mask), sequence_logprobs(case[f"{side}_reference"], mask)))
    chosen, rejected = sides
    loss = dpo_loss(chosen, rejected, DpoSpec(**case["settings"]), comparisons=ROWS)
    return answered(loss.total, moving)


def ilql(case: Case) -> Answer:
    """ILQL's, by logits, both Qs and values."""
    logits, first, second, values = (
        one.clone().requires_grad_() for one in (case["logits"], *case["qs"], case["values"])
    )
    heads = Heads(logits, (first, second), tuple(case["target_qs"]), values)
    data = Transitions(case["actions"], case["rewards"], case["dones"][:, :-1], case["dones"][:, 1:])
    loss = ilql_loss(heads, data, IlqlSpec(**case["settings"]), steps=float(data.mask.sum()))
    return answered(loss.total, [logits, first, second, values])


def answered(loss: torch.Tensor, moving: Sequence[torch.Tensor]) -> Answer:
    """The loss and its gradients by each of these."""
    return {"loss": loss.detach(), "gradients": list(torch.autograd.grad(loss, moving))}


if __name__ == "__main__":
    bars = {
        f"{kind}_{what}": BAR
        for kind in ("grpo", "rloo", "dpo", "ppo", "ilql")
        for what in ("loss", "gradient")
    }
    run("losses", measure, bars)
