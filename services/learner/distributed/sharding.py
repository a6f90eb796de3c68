"""A model over several processes: which tensors are divided, and how they come together again to be published.

trained layers             FSDP2, a layer at a time: float32 shards; gathered in the serving dtype for a pass
last norm, value head      whole in every process, their gradients are summed (weights.py)
what is frozen             whole in every process, in the serving dtype: no gradient, no moments, no master
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from services.common.errors import InvalidInput
from services.models.dither import dithered

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def shard_trunk(trunk: Any, mesh: DeviceMesh) -> None:
    """Divide the layers of a decoder over the mesh. Sends nothing; all else stays where it is.

    Layers go to the device one at a time: it never holds the whole model. Raises InvalidInput for a model of another
    form than the Llama family's.
    """
    if not hasattr(trunk, "layers"):
        raise InvalidInput(
            f"several processes need a model of the Llama family's form, not {type(trunk).__name__}"
        )
    # A shallow copy (models/trunk.py) shares its dictionaries of hooks with the other half.
    for name in _HOOKS:
        setattr(trunk, name, OrderedDict())
    divided: set[torch.nn.Parameter] = set()
    for layer in trunk.layers:
        serving = next(layer.parameters()).dtype
        divided.update(_shard(_masters(layer), mesh, serving).parameters())
    others = {parameter for parameter in trunk.parameters() if parameter not in divided}
    # The root holds no tensor: it is where the layers' streams meet.
    _sum_gradients(fully_shard(trunk, mesh=mesh, ignored_params=others))


def move_rest(model: torch.nn.Module, device: torch.device) -> None:
    """What is not divided, to the device."""
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _masters(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer in float32, its weights those that MasterWeights begins with: of whole tensors, so as it does alone."""
    for parameter in layer.parameters():
        parameter.data = dithered(parameter)
    return layer.float()  # buffers


def _shard(layer: torch.nn.Module, mesh: DeviceMesh, serving: torch.dtype) -> torch.nn.Module:
    """float32 shards, passes in the serving dtype, gradients summed in float32: as MasterWeights does alone."""
    low = None if serving == torch.float32 else serving
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    return _sum_gradients(fully_shard(layer, mesh=mesh, mp_policy=policy))


def _sum_gradients(module: FSDPModule) -> Any:
    """Losses are divided by the whole batch already. Plain sums: gloo knows no other reduction."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    return module


class Streamed(Mapping[str, torch.Tensor]):
    """The weights that are served, each made whole in the serving dtype when it is asked for, and let go.

    Every process must ask for all of them, in their order, at the same time: `items()` does. No process ever holds more
    than one whole tensor by it.
    """

    def __init__(
        self,
        model: Any,
        serving: torch.dtype,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._serving, self._around = serving, around
        self._parameters = dict(_served(model))

    def sizes(self) -> dict[str, int]:
        """Bytes of every tensor as it is served, in order."""
        return {
            name: one.numel() * (self._serving if isinstance(one, DTensor) else one.dtype).itemsize
            for name, one in self._parameters.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter = self._parameters[name]
        if not isinstance(parameter, DTensor):
            return parameter.detach()
        with self._around():
            shards = DTensor.from_local(
                parameter.to_local().detach().to(self._serving),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            return shards.full_tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def _served(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """As models/loading.serving_state: a tied tensor stands once."""
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            yield name, parameter
        elif parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            yield name, parameter
