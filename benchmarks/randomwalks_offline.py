"""ILQL on random walks: 200 updates on the data alone, then decoded at several betas (trlX, ilql_randomwalks)."""

from __future__ import annotations

import torch

from benchmarks.randomwalks_model import WIDTH, Decide, Walker, decaying, of_data, optimality
from services.common.spec.library import IlqlSpec
from services.common.tasks.randomwalks import VOCABULARY, RandomWalks
from services.learner.algorithms.ilql import IlqlHeads, Transitions, decoding_logits, ilql_loss, standardised

EPOCHS, BATCH, RATE = 20, 100, 6e-4
SPEC = IlqlSpec(tau=0.8, alpha=0.1, top_k=10)


class OfflineWalker(torch.nn.Module):
    """The model with ILQL's heads, from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Walker()
        self.heads = IlqlHeads(WIDTH, len(VOCABULARY))

    def decide(self, beta: float) -> Decide:
        """The policy at a beta."""
        spec = SPEC.model_copy(update={"beta": beta})

        def decide(prefixes: torch.Tensor) -> torch.Tensor:
            state = self.model.states(prefixes)[:, -1]
            targets = tuple(head(state) for head in self.heads.target_qs)
            logits, value = self.model.logits(state), self.heads.value(state)[:, 0]
            return decoding_logits(logits, targets, value, spec, temperature=1.0)

        return decide


def transitions(task: RandomWalks) -> tuple[torch.Tensor, Transitions]:
    """Token ids [1000, 11] and the steps in them; the standardised optimality is the last step's reward."""
    data = of_data(task)
    returns = standardised(torch.tensor([task.optimality(walk) for walk in task.walks]))
    following = torch.nn.functional.pad(data.mask[:, 1:], (0, 1))
    rewards = returns[:, None] * data.mask * (1 - following)
    return data.ids, Transitions(data.actions, rewards, data.mask, following)


def train(
    task: RandomWalks, seed: int, betas: tuple[float, ...], *, share: float = 1.0
) -> tuple[dict[float, tuple[float, float]], list[tuple[int, float]]]:
    """Sampled and greedy optimality at each beta, and the curve of the last beta over updates."""
    torch.manual_seed(seed)
    walker = OfflineWalker()
    ids, data = transitions(task)
    trained = [parameter for parameter in walker.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=1e-6)
    epochs = max(1, round(share * EPOCHS))
    rates = decaying(optimiser, epochs * -(-len(ids) // BATCH))
    generator = torch.Generator().manual_seed(seed)
    curve: list[tuple[int, float]] = []
    update = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(ids), generator=generator).split(BATCH):
            states = walker.model.states(ids[rows])
            heads = walker.heads(states, walker.model.logits(states[:, :-1]))
            part = Transitions(data.actions[rows], data.rewards[rows], data.mask[rows], data.continues[rows])
            loss = ilql_loss(heads, part, SPEC, steps=float(part.mask.sum()))
            optimiser.zero_grad()
            loss.total.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            rates.step()
            update += 1
            if update % SPEC.sync_every == 0:
                walker.heads.sync(SPEC.alpha)
            if update % 20 == 0:
                curve.append((update, optimality(walker.decide(betas[-1]), task, each=20, seed=seed)))
    found = {
        beta: (
            optimality(walker.decide(beta), task, each=100, seed=seed),
            optimality(walker.decide(beta), task, each=0, seed=seed),
        )
        for beta in betas
    }
    return found, curve
