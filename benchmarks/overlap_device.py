"""A device that takes a fixed time for each of its calls: sleeps what a call on the processor leaves of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

SECONDS = 1.0

Given = ParamSpec("Given")
Value = TypeVar("Value")


def on_device(call: Callable[Given, Value]) -> Callable[Given, Value]:
    """The call, which takes SECONDS from its beginning to its end."""

    @wraps(call)
    def timed(*given: Given.args, **named: Given.kwargs) -> Value:
        end = time.monotonic() + SECONDS
        result = call(*given, **named)
        time.sleep(max(0.0, end - time.monotonic()))
        return result

    return timed
