"""Served tensors of a model, with low-rank factors merged into them where a learner delivers an adapter.

    base + factors  ──merge──▶  the model's own tensors       what is named: base and factors, as they came

A model that gets no factors is served as it is, without a copy of anything. Knows no engine and no wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from services.common.errors import Corrupted
from services.models import low_rank
from services.policy.engines.fitting import check_fits


class AdaptedWeights:
    """Writes into `served`, tensors by name, which a model computes with."""

    def __init__(self, served: Mapping[str, torch.Tensor]) -> None:
        self._served = dict(served)
        # Of adapted layers: their weights without the factors.
        self._base: dict[str, torch.Tensor] = {}
        self._factors: dict[str, torch.Tensor] = {}

    def named(self) -> dict[str, torch.Tensor]:
        """What a version's digest is of."""
        return self._served | self._base | self._factors

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values in place and merge. Raises Mismatch before the first byte is written, Corrupted for a merge
        that the model does not have afterwards."""
        factors = {name: one for name, one in tensors.items() if low_rank.is_factor(name)}
        plain = {name: one for name, one in tensors.items() if name not in factors}
        self._check(plain, factors)
        with torch.no_grad():
            for layer in low_rank.layers_of(factors):
                name = f"{layer}.weight"
                self._base.setdefault(name, self._served[name].clone())
            self._factors |= {name: one.clone() for name, one in factors.items()}
            for name, one in plain.items():
                self._base.get(name, self._served[name]).copy_(one)
            changed = {f"{layer}.weight" for layer in low_rank.layers_of(factors)} | plain.keys()
            self._merge(sorted(changed & self._base.keys()))

    def _merge(self, names: Iterable[str]) -> None:
        for name in names:
            whole = low_rank.merged_layer(name.removesuffix(".weight"), self._base[name], self._factors)
            self._served[name].copy_(whole)
            if not torch.equal(self._served[name], whole):
                raise Corrupted(f"{name}: the model does not have the merge of its base and the adapter")

    def _check(self, plain: Mapping[str, torch.Tensor], factors: Mapping[str, torch.Tensor]) -> None:
        check_fits(self._served, plain)
        low_rank.check_factors(
            {name: tuple(one.shape) for name, one in {**self._factors, **factors}.items()},
            {name: tuple(one.shape) for name, one in self._served.items()},
        )
