"""Tensors of the contract to and from numpy arrays, without a copy where that is safe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput
from trimtab.common.v1 import common_pb2 as common

Array = npt.NDArray[Any]

_NUMPY: dict[common.Dtype.ValueType, np.dtype[Any]] = {
    common.DTYPE_FLOAT32: np.dtype("<f4"),
    common.DTYPE_FLOAT16: np.dtype("<f2"),
    common.DTYPE_INT32: np.dtype("<i4"),
    common.DTYPE_INT64: np.dtype("<i8"),
    common.DTYPE_UINT8: np.dtype("u1"),
    common.DTYPE_BOOL: np.dtype("?"),
}
_PROTO = {dtype: number for number, dtype in _NUMPY.items()}


def to_numpy(tensor: common.Tensor, *, field: str = "tensor") -> Array:
    """The array that a Tensor message describes, read-only, [shape] of its dtype.

    Raises InvalidInput, naming `field`, for an unknown dtype, a length that is not product(shape), and a shape that no
    array has.
    """
    dtype = _NUMPY.get(tensor.dtype)
    if dtype is None:
        raise InvalidInput(f"{field}: dtype {tensor.dtype} is not supported here", {field: "a numpy dtype"})
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(tensor.data):
        raise InvalidInput(
            f"{field}: shape {list(shape)} of {dtype} needs {math.prod(shape) * dtype.itemsize} bytes, "
            f"not {len(tensor.data)}",
            {field: "data of product(shape) elements"},
        )
    try:
        return np.frombuffer(tensor.data, dtype=dtype).reshape(shape)
    except ValueError as error:  # too many dimensions, or, of an empty one, dimensions too long
        raise InvalidInput(
            f"{field}: a shape of {len(shape)} dimensions that no array has", {field: "a numpy shape"}
        ) from error


def to_vector(tensor: common.Tensor, dtype: str, *, field: str = "tensor") -> Array:
    """Like to_numpy, for a one-dimensional array of exactly this dtype."""
    array = to_numpy(tensor, field=field)
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise InvalidInput(
            f"{field}: expected {dtype} [length], got {array.dtype} {list(array.shape)}",
            {field: f"{dtype} [length]"},
        )
    return array


def from_numpy(array: Array) -> common.Tensor:
    """A Tensor message with the array's dtype, shape and little-endian bytes."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return common.Tensor(dtype=_PROTO[little.dtype], shape=list(little.shape), data=little.tobytes())


def set_array(target: common.Tensor, array: Array) -> None:
    """Write an array into a Tensor message in place."""
    target.CopyFrom(from_numpy(array))
