"""A user's function: found, told from others, called as TRL calls it, its result checked. Runs in the worker alone.

Knows no processes and no time limits. Only the standard library.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.reward.rewards.trl_call import trl_arguments

if TYPE_CHECKING:
    import asyncio

GROUP = "trimtab.rewards"
_MESSAGE_LIMIT = 300


class NoFunction(Exception):
    """There is nothing of that name; its text says why."""


def load(name: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """The function of an entry point, or of package.module:function, and what tells it from others."""
    distribution = None
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        function: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            if not hasattr(function, part):
                raise NoFunction(f"module {module_name} has no {attribute}")
            function = getattr(function, part)
    else:
        entry = _entry_point(name)
        distribution = entry.dist
        function = entry.load()
    if not callable(function):
        raise NoFunction(f"{name} is a {type(function).__name__}, not a function")
    return function, _identity(name, function, distribution)


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    points = list(importlib.metadata.entry_points(group=GROUP))
    matching = [point for point in points if point.name == name]
    if len(matching) == 1:
        return matching[0]
    there = ", ".join(sorted({point.name for point in points})) or "none"
    if matching:
        raise NoFunction(f"{len(matching)} distributions have an entry point {name} of group {GROUP}")
    raise NoFunction(
        f"there is no entry point {name} of group {GROUP} (there are: {there}); a function may also be "
        "written package.module:function"
    )


def _identity(
    name: str, function: Any, distribution: importlib.metadata.Distribution | None
) -> dict[str, str]:
    """Name, source file's SHA-256, distribution and version: changes when the function's code does."""
    inner = inspect.unwrap(function)
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")
    source = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    if distribution is None and {"site-packages", "dist-packages"} & set(file.parts):
        top = getattr(inner, "__module__", "").partition(".")[0]
        names = importlib.metadata.packages_distributions().get(top, [])
        distribution = importlib.metadata.distribution(names[0]) if names else None
    version = f"{distribution.name} {distribution.version}" if distribution else ""
    qualified = f"{getattr(inner, '__module__', '')}:{getattr(inner, '__qualname__', '')}"
    return {"name": name, "function": qualified, "source": source, "distribution": version}


class FunctionCaller:
    """Calls the function as TRL does: everything by keyword, each a list with one element for each row."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._runner: asyncio.Runner | None = None
        try:
            self._parameters: Sequence[inspect.Parameter] | None = list(
                inspect.signature(function).parameters.values()
            )
        except (TypeError, ValueError):  # a builtin
            self._parameters = None

    def answer(self, rows: Sequence[Mapping[str, Any]], *, trl: bool = False) -> dict[str, Any]:
        """{"values": [number, text of an error, with trl None]}, {"missing": [columns]}, {"raised", "wrong": text}."""
        try:
            available = trl_arguments(rows) if trl else _arguments(rows)
            missing = self._missing(available)
            if missing:
                return {"missing": missing}
            result = self._call(available)
            return checked(result, len(rows), none=trl)
        except BaseException as error:
            return {"raised": told(error)}

    def _missing(self, available: Mapping[str, Any]) -> list[str]:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [
            parameter.name
            for parameter in self._parameters or ()
            if parameter.kind in named
            and parameter.default is inspect.Parameter.empty
            and parameter.name not in available
        ]

    def _call(self, available: Mapping[str, Any]) -> Any:
        parameters = self._parameters
        if parameters is not None and not any(
            each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters
        ):
            available = {each.name: available[each.name] for each in parameters if each.name in available}
        result = self._function(**available)
        return self._awaited(result) if inspect.isawaitable(result) else result

    def _awaited(self, result: Any) -> Any:
        import asyncio

        async def wait() -> Any:
            return await result

        # One loop for all calls: clients that the function keeps belong to it.
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(wait())


def _arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns that a row lacks are None there. Names of our own win over columns of that name."""
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    arguments: dict[str, list[Any]] = {name: [row["columns"].get(name) for row in rows] for name in names}
    arguments["prompts"] = [row["prompt"] for row in rows]
    arguments["completions"] = [row["completion"] for row in rows]
    arguments["messages"] = [
        [{"role": role, "content": content} for role, content in row["messages"]] for row in rows
    ]
    return arguments


def checked(result: Any, count: int, *, none: bool = False) -> dict[str, Any]:
    """A number, or the text of an error, for each row; {"wrong": …} for what is no list of that length.

    none: None, and NaN as TRL makes of it, stay None.
    """
    if hasattr(result, "tolist"):  # numpy, torch
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return {"wrong": f"returned {_kind(result)}, expected a list of {count} numbers"}
    if len(result) != count:
        return {"wrong": f"returned {len(result)} values for {count} rows"}
    return {"values": [None if none and _is_none(value) else _number(value) for value in result]}


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | str:
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, (str, bytes)) or (
        not hasattr(value, "__float__") and not hasattr(value, "__index__")
    ):
        return f"returned {_kind(value)} for this row, expected a number"
    return float(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def told(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    try:
        text = " ".join(str(error).split())[:_MESSAGE_LIMIT]
    except Exception:
        text = ""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
