"""Tensor messages to and from the standard library's arrays, so that a client needs no numpy.

What comes back has the buffer protocol: numpy.asarray and torch.frombuffer take it without a copy.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

from trimtab.common.v1 import common_pb2 as common

_CODES: dict[int, str] = {
    common.DTYPE_FLOAT32: "f",
    common.DTYPE_INT32: "i",
    common.DTYPE_INT64: "q",
    common.DTYPE_UINT8: "B",
}


def ids_tensor(ids: Iterable[int]) -> common.Tensor:
    """An int32 [length] Tensor of token ids: a list, a numpy array, or any iterable of integers."""
    values = array("i", (int(value) for value in ids))
    if sys.byteorder == "big":
        values.byteswap()
    return common.Tensor(dtype=common.DTYPE_INT32, shape=[len(values)], data=values.tobytes())


def values_of(tensor: common.Tensor) -> array[float] | array[int]:
    """The elements of a float32, int32, int64 or uint8 Tensor, flat, row-major. ValueError for others."""
    code = _CODES.get(tensor.dtype)
    if code is None:
        if not tensor.data:
            return array("f")
        raise ValueError(f"a tensor of dtype {common.Dtype.Name(tensor.dtype)} is not supported here")
    values: array[float] | array[int] = array(code)
    values.frombytes(tensor.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
