"""Low-precision weights for the passes, float32 masters for the optimiser: the published bytes are their cast.

Gradients of micro-batches are summed in float32: in bfloat16 a small one added to a large sum is lost. Masters begin
anywhere in the rounding cells of the weights they are made of (dither.py), not in the middle of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from services.common.errors import Corrupted, Mismatch
from services.models.dither import dithered
from services.models.eight_bit import adamw_8bit

# Elements whose squares are summed in float32.
_ROW = 1 << 11
# Of a group of parameters, beside its rate: a run's file says them.
_OPTIONS = ("betas", "eps", "weight_decay", "alpha")


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    parameters: Sequence[torch.nn.Parameter]
    learning_rate: float


class MasterWeights:
    """AdamW (arXiv 1711.05101) or RMSprop (decay 0.99) on float32 copies of parameters that may be bfloat16.

    adamw_8bit: AdamW whose moments are kept in a byte each (arXiv 2110.02861).

    tensorflow_eps: Adam's eps stands beside the second moment's root as it is, not beside its bias-corrected form, so
    that early steps are smaller. average: decay of an average of the masters; None keeps none.
    """

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        kind: Literal["adamw", "rmsprop", "adamw_8bit"] = "adamw",
        tensorflow_eps: bool = False,
        average: float | None = None,
    ) -> None:
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        # Sums of gradients of low-precision parameters, kept from update to update: fresh memory costs a fault a page.
        self._sums: dict[int, torch.Tensor] = {}
        self._rates: list[float] = []
        self._max_grad_norm, self._kind = max_grad_norm, kind
        options = []
        for group in groups:
            masters = [self._master(parameter) for parameter in group.parameters]
            self._rates.append(group.learning_rate)
            options.append({"params": masters, "lr": group.learning_rate})
        self.optimiser: torch.optim.Optimizer
        if kind == "rmsprop":
            self.optimiser = torch.optim.RMSprop(options, alpha=0.99, eps=eps, weight_decay=weight_decay)
        elif kind == "adamw_8bit":
            self.optimiser = adamw_8bit(options, betas=betas, eps=eps, weight_decay=weight_decay)
        else:
            self.optimiser = torch.optim.AdamW(
                options, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
            )
        # TensorFlow's eps beside sqrt(v) is torch's eps / sqrt(1 - beta2^t) beside sqrt(v / (1 - beta2^t)).
        self._eps, self._beta2 = (eps if tensorflow_eps else None), betas[1]
        self._updates, self._decay = 0, average
        self._averages: list[torch.Tensor] = (
            [] if average is None else [master.detach().clone() for _, master in self._pairs]
        )

    def _master(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        same = parameter.dtype == torch.float32
        master = parameter if same else torch.nn.Parameter(dithered(parameter))
        self._pairs.append((parameter, master))
        return master

    def accumulate(self) -> None:
        """Add the gradients of a micro-batch to the float32 sums and clear them."""
        for at, (parameter, master) in enumerate(self._pairs):
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                if at not in self._sums:
                    self._sums[at] = torch.empty_like(master)
                master.grad = self._sums[at].copy_(parameter.grad)
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def step(self, rate_factor: float = 1.0) -> float:
        """Clip, update the masters, cast them into the parameters, clear gradients; the gradient norm before.

        rate_factor multiplies every group's learning rate (the schedule). Raises Corrupted, and changes nothing,
        when a gradient is not finite: one NaN in the norm would reach every weight.
        """
        masters = [master for _, master in self._pairs if master.grad is not None]
        norm = self._clip(masters, self._max_grad_norm)
        if not math.isfinite(norm):
            self.optimiser.zero_grad(set_to_none=True)
            raise Corrupted(f"the gradient is not finite (norm {norm}): nothing was updated")
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
            if self._eps is not None:
                group["eps"] = self._eps / math.sqrt(1 - self._beta2 ** (self._updates + 1))
        self.optimiser.step()
        # Fused ones write without a word: whoever keeps something made of a weight looks at its version (fused.py).
        torch.autograd.graph.increment_version(masters)
        self._updates += 1
        self.optimiser.zero_grad(set_to_none=True)
        if self._decay is not None:
            now: list[torch.Tensor] = [master.detach() for _, master in self._pairs]
            torch._foreach_lerp_(self._averages, now, 1 - self._decay)
        self.cast()
        return norm

    def _clip(self, masters: list[torch.nn.Parameter], largest: float) -> float:
        """Scale the gradients down to this norm; what it was."""
        gradients = [master.grad for master in masters if master.grad is not None]
        norm = total_norm(gradients)
        if (
            norm > largest
        ):  # torch's clip_grad_norm_ multiplies by 1 otherwise, and reads everything once more
            torch._foreach_mul_(gradients, largest / (norm + 1e-6))
        return norm

    def masters(self, parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
        """The float32 masters of these, in their order."""
        master_of = {id(parameter): master for parameter, master in self._pairs}
        return [master_of[id(one)].detach() for one in parameters]

    def overwrite(self, parameters: Iterable[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
        """Put float32 values into the masters of these, and cast."""
        with torch.no_grad():
            for master, value in zip(self.masters(parameters), values, strict=True):
                master.copy_(value)
        self.cast()

    def cast(self) -> None:
        """Write the masters into the parameters, rounded to their dtype."""
        with torch.no_grad():
            for parameter, master in self._pairs:
                if master is not parameter:
                    parameter.copy_(master)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Meanwhile the parameters are the cast of the masters' average; afterwards what they were, bit for bit.

        Raises ValueError where no average is kept.
        """
        if not self._averages:
            raise ValueError("no average of the weights is kept")
        kept = [parameter.detach().clone() for parameter, _ in self._pairs]
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for (parameter, _), value in zip(self._pairs, values, strict=True):
                parameter.copy_(value)

    def matches(self) -> bool:
        """Whether every parameter is still exactly the cast of its master."""
        return all(
            _same_bits(parameter, master.to(parameter.dtype))
            for parameter, master in self._pairs
            if master is not parameter
        )

    def state_dict(self) -> dict[str, Any]:
        """Masters and optimiser state, for a checkpoint."""
        return {
            "masters": [master.detach() for _, master in self._pairs],
            "kind": self._kind,
            "optimiser": self.optimiser.state_dict(),
            "updates": self._updates,
            "averages": self._averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up again exactly where `state_dict` was written.

        Raises Mismatch, and changes nothing, for the state of other weights (other frozen layers, another model) or
        of another kind of optimiser.
        """
        if state.get("kind", self._kind) != self._kind:
            raise Mismatch(f"the optimiser's state is of {state['kind']}, this run has {self._kind}")
        shapes = [tuple(saved.shape) for saved in state["masters"]]
        if shapes != [tuple(master.shape) for _, master in self._pairs]:
            raise Mismatch("the optimiser's state is of other weights than are trained now")
        with torch.no_grad():
            for (_, master), saved in zip(self._pairs, state["masters"], strict=True):
                master.copy_(saved)
            # A run that keeps no average yet may begin with one, at the masters.
            saved_averages = state.get("averages") or [master for _, master in self._pairs]
            for average, saved in zip(self._averages, saved_averages, strict=False):
                average.copy_(saved)
        set_now = [
            {key: group[key] for key in _OPTIONS if key in group} for group in self.optimiser.param_groups
        ]
        self.optimiser.load_state_dict(state["optimiser"])
        # torch takes these from the state as well: what the run's file says now would not hold.
        for group, options in zip(self.optimiser.param_groups, set_now, strict=True):
            group.update(options)
        self._updates = int(state.get("updates", 0))
        self.cast()


def total_norm(tensors: Iterable[torch.Tensor]) -> float:
    """Euclidean length of all elements together.

    On a processor by rows of elements, whose squares are summed in float64: torch's norm of a whole embedding loses the
    third digit where vectors are of eight numbers, and takes as long.
    """
    tensors = list(tensors)
    if any(each.device.type != "cpu" for each in tensors):
        return float(torch.nn.utils.get_total_norm(tensors))
    return math.sqrt(sum(map(_squares, tensors)))


def _squares(tensor: torch.Tensor) -> float:
    """Sum of the squares of all elements."""
    flat = tensor.detach().reshape(-1)
    whole = len(flat) // _ROW * _ROW
    dtype = torch.promote_types(flat.dtype, torch.float32)
    norms = (
        torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
        for rows in (flat[:whole].view(-1, _ROW), flat[whole:].view(1, -1))
    )
    return sum(float(each.double().square().sum()) for each in norms)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous tensors have the same bytes, compared eight at a time: half the time of torch.equal."""
    one, other = one.detach().reshape(-1), other.detach().reshape(-1)
    wide = one.numel() * one.element_size() % 8 == 0
    bits = torch.int64 if wide else torch.uint8
    return torch.equal(one.view(bits), other.view(bits))
