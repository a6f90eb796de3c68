"""Log-probs without the whole logits: against torch's own log_softmax, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.models import logprobs
from services.models.logprobs import (
    completion_logprobs,
    pack,
    token_logprobs,
    token_logprobs_and_entropy,
)
from services.models.packing import micro_batches
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs

WIDTH, VOCABULARY = 8, 37


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, head and targets in float64, the first two with gradients."""
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    return states.requires_grad_(), head.requires_grad_(), targets


def plain(states: Any, head: Any, targets: Any, temperature: float) -> torch.Tensor:
    """All logits at once: what the chunked one must equal."""
    logs = torch.log_softmax(states @ head.T / temperature, dim=-1)
    return logs.gather(-1, targets[:, None])[:, 0]


@pytest.fixture(params=[64, 10, 1], ids=["whole", "tens", "ones"])
def _parts_of_the_vocabulary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 37 tokens at once, ten at a time with 7 left, one at a time."""
    monkeypatch.setattr(logprobs, "PART", 1)
    monkeypatch.setattr(logprobs, "LEAST", request.param)


@pytest.mark.usefixtures("_parts_of_the_vocabulary")
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("rows", [1, 131])
def test_token_logprobs_and_gradients_are_torchs(rows: int, temperature: float) -> None:
    """Values and the gradients of states and head equal autograd's in float64, for any parts of the vocabulary."""
    states, head, targets = inputs(rows)
    weights = torch.linspace(-1, 2, rows, dtype=torch.float64)
    found = token_logprobs(states, head, targets, temperature)
    grads = torch.autograd.grad((found * weights).sum(), [states, head])
    expected = plain(states, head, targets, temperature)
    expected_grads = torch.autograd.grad((expected * weights).sum(), [states, head])
    # Logits are rounded to float32 on the way: 24 bits, of numbers up to about 15.
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(grads[0], expected_grads[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1], expected_grads[1], atol=1e-5 * rows, rtol=1e-5)


def test_a_frozen_head_costs_and_gets_no_gradient() -> None:
    """With a head that is not trained only the states get a gradient."""
    states, head, targets = inputs(5)
    found = token_logprobs(states, head.detach(), targets, 1.0)
    found.sum().backward()
    assert states.grad is not None
    assert head.grad is None


@pytest.mark.usefixtures("_parts_of_the_vocabulary")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy(temperature: float) -> None:
    """-sum p log p of each row, in nats; its gradients, alone and beside those of the log-probs, are autograd's."""
    states, head, targets = inputs(20)
    each = torch.linspace(0.5, 1.5, 20)
    temperatures = each * temperature
    logprobs, entropy = token_logprobs_and_entropy(states, head, targets, temperatures)
    logs = torch.log_softmax(states @ head.T / temperatures.double()[:, None], dim=-1)
    spread, chosen = -(logs.exp() * logs).sum(-1), logs.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(entropy.double(), spread, atol=5e-6, rtol=0)
    torch.testing.assert_close(logprobs.double(), chosen, atol=5e-6, rtol=0)
    weights = torch.linspace(-1, 2, 20, dtype=torch.float64)
    for ours, theirs in (
        ((entropy * weights).sum(), (spread * weights).sum()),
        ((entropy * weights + 3 * logprobs).sum(), (spread * weights + 3 * chosen).sum()),
    ):
        found = torch.autograd.grad(ours, [states, head], retain_graph=True)
        expected = torch.autograd.grad(theirs, [states, head], retain_graph=True)
        torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=1e-4, rtol=1e-5)


def test_pack_points_at_the_positions_that_predict() -> None:
    """Prompt (7, 8) and completion (9, 10): states 1 and 2 predict 9 and 10; the second row starts at 4."""
    packed = pack([(ids(7, 8), ids(9, 10)), (ids(5), ids(6))])
    assert packed.ids.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    assert packed.positions.tolist() == [1, 2, 4]
    assert packed.targets.tolist() == [9, 10, 6]
    assert packed.lengths == [2, 1]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded_from(make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_completion_logprobs_equal_a_full_pass(loaded: Any, temperature: float) -> None:
    """Each sequence alone through the whole model, all logits in float64, gives the same numbers."""
    pairs = random_pairs(17)
    found = completion_logprobs(loaded.model, pairs, temperature=temperature, token_budget=64)
    for (prompt, completion), values in zip(pairs, found, strict=True):
        whole = torch.tensor(np.concatenate([prompt, completion])[None].astype(np.int64))
        with torch.inference_mode():
            logs = torch.log_softmax(loaded.model(whole).logits[0].double() / temperature, dim=-1)
        rows = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        expected = logs[rows, torch.tensor(completion.astype(np.int64))].numpy()
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("budget", [1, 16, 50, 100_000])
def test_any_split_gives_the_same(loaded: Any, budget: int) -> None:
    """One sequence at a time or all in one batch: the numbers are the same and stand in the order given."""
    pairs = random_pairs(13, seed=4)
    found = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=budget)
    expected = completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=200)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6, rtol=0)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_micro_batches(lengths: list[int], budget: int) -> None:
    """Every index once; rows * longest within the budget or a single row; longest first; never split early."""
    batches = micro_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for at, batch in enumerate(batches):
        longest = lengths[batch[0]]
        assert len(batch) == 1 or len(batch) * longest <= budget
        # The next one would not have fitted: no batch is smaller than it must be.
        assert at == len(batches) - 1 or (len(batch) + 1) * longest > budget


def ids(*values: int) -> Any:
    return np.array(values, np.int32)
