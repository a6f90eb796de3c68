"""Masters in float32: torch's own AdamW on float32 weights, exact casts below, exact resumes."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import pytest
import torch

from services.common.errors import Corrupted, Mismatch
from services.models.master_weights import MasterWeights, ParameterGroup, total_norm

OPTIONS: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.nn.Parameter]:
    """A matrix and a vector."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 4), (3,))]


def masters_of(trained: list[torch.nn.Parameter], rate: float = 0.1) -> MasterWeights:
    return MasterWeights(
        [ParameterGroup(trained[:1], rate), ParameterGroup(trained[1:], 2 * rate)], **OPTIONS
    )


def backward(trained: list[torch.nn.Parameter], number: int, share: float = 1.0) -> None:
    """A loss that depends on the number of the step."""
    generator = torch.Generator().manual_seed(number)
    loss = sum(
        (share * one.float() * torch.randn(one.shape, generator=generator)).sum()
        + share * one.float().square().sum()
        for one in trained
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()


def test_equals_torchs_adamw_on_float32() -> None:
    """Same weights as AdamW with clip_grad_norm_ and the same rates, over steps with a schedule."""
    own, other = parameters(), parameters()
    masters = masters_of(own)
    groups = [{"params": other[:1], "lr": 0.1}, {"params": other[1:], "lr": 0.2}]
    adamw = torch.optim.AdamW(groups, betas=OPTIONS["betas"], eps=1e-8, weight_decay=0.01)
    for number, factor in enumerate((1.0, 0.5, 0.25)):
        backward(own, number)
        masters.accumulate()
        norm = masters.step(factor)
        backward(other, number)
        expected_norm = torch.nn.utils.clip_grad_norm_(other, 1.0)
        for group, rate in zip(adamw.param_groups, (0.1, 0.2), strict=True):
            group["lr"] = rate * factor
        adamw.step()
        adamw.zero_grad()
        assert norm == pytest.approx(float(expected_norm), rel=1e-6)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_micro_batches_add_up_to_one_batch(dtype: torch.dtype) -> None:
    """Four quarters of a loss, accumulated, give the update of the whole loss."""
    whole, parts = parameters(dtype), parameters(dtype)
    one, two = masters_of(whole), masters_of(parts)
    backward(whole, 1)
    one.accumulate()
    for _ in range(4):
        backward(parts, 1, share=0.25)
        two.accumulate()
    # A quarter is exact in bfloat16, so even the norms agree.
    assert one.step() == pytest.approx(two.step(), rel=1e-6)
    for first, second in zip(whole, parts, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_small_gradients_are_not_lost_in_large_sums() -> None:
    """256 + 1/4 a hundred times is 281 in float32; in bfloat16 each quarter would vanish."""
    one = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    masters = MasterWeights([ParameterGroup([one], 1.0)], **OPTIONS)
    for grad in (256.0, *[0.25] * 100):
        one.grad = torch.full_like(one, grad)
        masters.accumulate()
    assert masters.step() == pytest.approx(281.0)


def test_parameters_are_the_cast_of_their_masters() -> None:
    """After steps too small for bfloat16 the masters have moved, and every parameter is their rounding."""
    trained = parameters(torch.bfloat16)
    masters = masters_of(trained, rate=1e-4)
    before = copy.deepcopy(masters.state_dict()["masters"])
    for number in range(5):
        backward(trained, number)
        masters.accumulate()
        masters.step()
    after = masters.state_dict()["masters"]
    for parameter, master, old in zip(trained, after, before, strict=True):
        assert master.dtype == torch.float32
        assert not torch.equal(master, old)
        assert torch.equal(parameter, master.to(torch.bfloat16))
    assert masters.matches()


def test_a_changed_parameter_is_noticed() -> None:
    """matches() sees one bit of a parameter that is not its master's cast."""
    trained = parameters(torch.bfloat16)
    masters = masters_of(trained)
    with torch.no_grad():
        trained[1][2] += 0.5
    assert not masters.matches()
    masters.cast()
    assert masters.matches()


def test_zero_gradients_publish_nothing() -> None:
    """A step on gradients of zero, without decay, changes no byte; nor does a rate of 0."""
    trained = parameters(torch.bfloat16)
    masters = MasterWeights([ParameterGroup(trained, 0.1)], **{**OPTIONS, "weight_decay": 0.0})
    before = [one.detach().clone() for one in trained]
    for one in trained:
        one.grad = torch.zeros_like(one)
    masters.accumulate()
    assert masters.step() == 0.0
    backward(trained, 1)
    masters.accumulate()
    masters.step(rate_factor=0.0)
    assert all(torch.equal(one, old) for one, old in zip(trained, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_exact(dtype: torch.dtype) -> None:
    """Steps after a round trip through state_dict give the very bits that steps without it give."""
    trained, resumed = parameters(dtype), parameters(dtype, seed=9)
    masters, fresh = masters_of(trained), masters_of(resumed)
    for number in range(6):
        if number == 3:
            fresh.load_state_dict(copy.deepcopy(masters.state_dict()))
            assert all(torch.equal(a, b) for a, b in zip(trained, resumed, strict=True))
        for weights, optimiser in ((trained, masters), (resumed, fresh)):
            if optimiser is masters or number >= 3:
                backward(weights, number)
                optimiser.accumulate()
                optimiser.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(trained, resumed, strict=True))


def test_a_state_of_other_weights_is_refused_whole() -> None:
    """Another number of weights or another shape is a clear error, and nothing is overwritten."""
    trained = parameters()
    masters = masters_of(trained)
    before = [one.detach().clone() for one in trained]
    for others in (
        parameters()[:1],
        [torch.nn.Parameter(torch.ones(5, 4)), torch.nn.Parameter(torch.ones(2))],
    ):
        state = MasterWeights([ParameterGroup(others, 0.1)], **OPTIONS).state_dict()
        with pytest.raises(Mismatch, match="other weights than are trained now"):
            masters.load_state_dict(state)
    assert all(torch.equal(one, old) for one, old in zip(trained, before, strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_stop_before_the_weights(poison: float) -> None:
    """A NaN or an infinity in a gradient is an error and changes no weight."""
    trained = parameters(torch.bfloat16)
    masters = masters_of(trained)
    before = [one.detach().clone() for one in trained]
    backward(trained, 1)
    assert trained[0].grad is not None
    trained[0].grad[0, 0] = poison
    masters.accumulate()
    with pytest.raises(Corrupted, match="gradient is not finite"):
        masters.step()
    assert masters.matches()
    assert all(torch.equal(one, old) for one, old in zip(trained, before, strict=True))


def stepped(weights: list[torch.nn.Parameter], masters: MasterWeights, count: int) -> None:
    for number in range(count):
        backward(weights, number)
        masters.accumulate()
        masters.step()


def test_a_state_of_another_optimiser_is_refused_whole() -> None:
    """RMSprop's moments are no Adam's: said, and nothing moves."""
    own = parameters()
    masters = masters_of(own)
    before = [one.detach().clone() for one in own]
    other = MasterWeights([ParameterGroup(parameters(seed=3), 0.1)], **OPTIONS, kind="rmsprop")
    with pytest.raises(Mismatch, match="the optimiser's state is of rmsprop, this run has adamw"):
        masters.load_state_dict(other.state_dict())
    assert all(torch.equal(one, old) for one, old in zip(own, before, strict=True))


def test_rmsprop_equals_torchs() -> None:
    """alpha 0.99 and eps beside the root, as A2C takes it."""
    own, other = parameters(), parameters()
    masters = MasterWeights(
        [ParameterGroup(own, 0.1)], **{**OPTIONS, "eps": 1e-5, "weight_decay": 0.0}, kind="rmsprop"
    )
    stepped(own, masters, 3)
    rmsprop = torch.optim.RMSprop(other, lr=0.1, alpha=0.99, eps=1e-5)
    for number in range(3):
        backward(other, number)
        torch.nn.utils.clip_grad_norm_(other, 1.0)
        rmsprop.step()
        rmsprop.zero_grad()
    for one, two in zip(own, other, strict=True):
        # The norms differ in the last digit, and an element near 0 is a difference of larger ones.
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-6)


def test_the_norm_of_a_large_tensor_is_exact() -> None:
    """Three million elements of two sizes, against float64: six digits; views with gaps too, and none."""
    tensors = [torch.full((3_000_001,), 0.1), torch.full((2, 5), 30.0), torch.full((4, 6), 7.0)[:, ::2]]
    exact = math.sqrt(sum(float(each.double().square().sum()) for each in tensors))
    assert total_norm(tensors) == pytest.approx(exact, rel=1e-6)
    assert total_norm([]) == 0.0


def test_tensorflows_eps_by_hand() -> None:
    """One weight, gradient 0.001, eps 0.1: lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), twice."""
    weight = torch.nn.Parameter(torch.zeros(1))
    options = {"betas": (0.9, 0.999), "eps": 0.1, "weight_decay": 0.0, "max_grad_norm": 1e9}
    masters = MasterWeights([ParameterGroup([weight], 1.0)], **options, tensorflow_eps=True)  # type: ignore[arg-type]
    expected, first, second = 0.0, 0.0, 0.0
    for step in (1, 2):
        (0.001 * weight).sum().backward()
        masters.accumulate()
        masters.step()
        first, second = 0.9 * first + 0.1 * 0.001, 0.999 * second + 0.001 * 0.001**2
        rate = (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        expected -= rate * first / (second**0.5 + 0.1)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_kept_in_float32_and_put_in_for_a_while(dtype: torch.dtype) -> None:
    """a <- 0.75 a + 0.25 w after each update, from the start; the weights come back bit for bit; a resume goes on."""
    trained = parameters(dtype)
    masters = MasterWeights([ParameterGroup(trained, 0.1)], **OPTIONS, average=0.75)
    mean = [one.clone() for one in masters.state_dict()["masters"]]
    for number in range(3):
        backward(trained, number)
        masters.accumulate()
        masters.step()
        for at, saved in enumerate(masters.state_dict()["masters"]):
            mean[at] = 0.75 * mean[at] + 0.25 * saved
    before = [one.detach().clone() for one in trained]
    others = parameters(dtype, seed=1)
    resumed = MasterWeights([ParameterGroup(others, 0.1)], **OPTIONS, average=0.75)
    resumed.load_state_dict(copy.deepcopy(masters.state_dict()))
    for held, weights in ((masters, trained), (resumed, others)):
        with held.averaged():
            for one, expected in zip(weights, mean, strict=True):
                torch.testing.assert_close(one.detach(), expected.to(dtype), atol=1e-6, rtol=1e-6)
        for one, expected in zip(weights, before, strict=True):
            assert torch.equal(one, expected)


def test_without_an_average_none_is_put_in() -> None:
    """Said, not guessed."""
    with pytest.raises(ValueError, match="average"), masters_of(parameters()).averaged():
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_an_update_shows_in_the_version(kind: Literal["adamw", "rmsprop"], dtype: torch.dtype) -> None:
    """Whoever keeps a copy in another order, as the fused decoder does, sees that the weight is another one."""
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=dtype))
    masters = MasterWeights([ParameterGroup([weight], 0.1)], kind=kind, **OPTIONS)
    weight.grad = torch.ones_like(weight)
    before = weight._version
    masters.accumulate()
    masters.step()
    assert weight._version > before


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_a_resume_takes_the_options_that_are_set_now(kind: Literal["adamw", "rmsprop"]) -> None:
    """Decay, betas and eps are what the run's file says now; moments go on where they were."""
    old, new = parameters(), parameters()
    before = MasterWeights([ParameterGroup(old, 0.1)], kind=kind, **OPTIONS)
    backward(old, 0)
    before.step()
    changed = {"betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.2, "max_grad_norm": 1.0}
    after = MasterWeights([ParameterGroup(new, 0.1)], kind=kind, **changed)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    [group] = after.optimiser.param_groups
    assert (group["eps"], group["weight_decay"]) == (1e-5, 0.2)
    assert group.get("betas", (0.8, 0.9)) == (0.8, 0.9)
    assert len(after.optimiser.state) == len(new)
