"""Field violations of a request, collected so that a caller hears of all mistakes. Knows no service."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np

from services.common.arrays import Array, to_vector
from services.common.errors import InvalidInput
from trimtab.common.v1 import common_pb2 as common


class Violations:
    """Collects what is wrong with a request; `raise_any` raises one InvalidInput for all of it."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def check(self, holds: bool, field: str, expected: str) -> bool:
        """Record a violation of `field` unless `holds`; `expected` is what was expected. Returns `holds`."""
        if not holds:
            self._found.setdefault(field, expected)
        return holds

    def not_empty(self, value: Sized, field: str, what: str = "a value") -> bool:
        """`value` has at least one element or character."""
        return self.check(len(value) > 0, field, f"expected {what}, got nothing")

    def token_ids(
        self, tensor: common.Tensor, field: str, *, vocabulary_size: int, min_length: int = 1
    ) -> Array | None:
        """The int32 ids [length] of a tensor, each in [0, vocabulary_size); None where that is violated."""
        try:
            ids = token_ids(tensor, field)
        except InvalidInput as error:
            self.check(False, field, str(error).removeprefix(f"{field}: "))
            return None
        return ids if self.ids(ids, field, vocabulary_size=vocabulary_size, min_length=min_length) else None

    def ids(self, ids: Array, field: str, *, vocabulary_size: int, min_length: int = 1) -> bool:
        """Token ids [length], at least `min_length` of them, each in [0, vocabulary_size)."""
        if not self.check(
            len(ids) >= min_length, field, f"expected at least {min_length} token ids, got {len(ids)}"
        ):
            return False
        if len(ids) == 0:
            return True
        low, high = int(ids.min()), int(ids.max())
        worst = low if low < 0 else high
        return self.check(
            low >= 0 and high < vocabulary_size, field, f"expected ids in [0, {vocabulary_size}), got {worst}"
        )

    def raise_any(self) -> None:
        """Raise InvalidInput with every violation; its text is the first and how many more there are."""
        if not self._found:
            return
        field, expected = next(iter(self._found.items()))
        more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
        raise InvalidInput(f"{field}: {expected}{more}", self._found)


def require(holds: bool, field: str, expected: str) -> None:
    """Raise InvalidInput for one field unless `holds`."""
    violations = Violations()
    violations.check(holds, field, expected)
    violations.raise_any()


def token_ids(tensor: common.Tensor, field: str) -> Array:
    """The int32 ids [length] of a tensor; an absent one is a completion without tokens, [0].

    Raises InvalidInput, naming `field`, for anything else.
    """
    if not tensor.shape and not tensor.data:
        return np.zeros(0, np.int32)
    return to_vector(tensor, "int32", field=field)
