"""Reward functions as TRL is given them, to sources of a run. Imports them, as TRL does, to see what they ask for.

module:function, module.function   called as TRL calls it        ─▶ trl:module:function
accuracy_reward, think_format_…    TRL's own, where it is installed ─▶ trl:trl.rewards:accuracy_reward
folder                             a reward model                 ─▶ folder
rule:…, function:…, trl:…          as a run writes it
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput, NotFound

_BUILT_IN = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
_GIVEN = {"prompts", "completions", "completion_ids", "log_extra", "log_metric"}
_AS_WRITTEN = ("rule:", "function:", "trl:")


def reward_source(name: str, columns: Collection[str]) -> str:
    """The source of a reward. Raises NotFound or InvalidInput, in one line.

    columns: of the data set, which a function may ask for by name.
    """
    if name.startswith(_AS_WRITTEN) or Path(name).is_dir():
        return name
    if name == "get_soft_overlong_punishment":
        raise InvalidInput(
            f"reward function {name}: it makes a function: give one that is made, as module:function"
        )
    place = f"trl.rewards:{name}" if name in _BUILT_IN else name
    if ":" not in place:
        module, dot, attribute = place.rpartition(".")
        if not dot or "/" in place:
            raise NotFound(f"reward {name}: no such folder, and no module:function")
        place = f"{module}:{attribute}"
    _check(place, _function(place), columns)
    return f"trl:{place}"


def _function(place: str) -> Callable[..., Any]:
    module, _, attribute = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # TRL looks there, and the reward service does
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module raises whatever it likes
        raise NotFound(
            f"reward function {place}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if not callable(found):
        raise InvalidInput(f"reward function {place}: expected a function, got a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _check(place: str, function: Callable[..., Any], columns: Collection[str]) -> None:
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in parameters:
        required = parameter.kind in named and parameter.default is inspect.Parameter.empty
        if not required or parameter.name in _GIVEN or parameter.name in columns:
            continue
        if parameter.name in ("trainer_state", "environments"):
            raise InvalidInput(
                f"reward function {place}: asks for {parameter.name}, which only TRL's own loop has"
            )
        there = ", ".join(sorted(columns)) or "none"
        raise InvalidInput(
            f"reward function {place}: asks for {parameter.name}, which is no column (columns: {there})"
        )
