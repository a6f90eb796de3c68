"""Libraries that one metric or rule needs and that not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from services.common.errors import InvalidInput


def package(kind: str, name: str, module: str, distribution: str, *, extra: str) -> Any:
    """The module that the metric or rule (`kind`) of this name needs. InvalidInput, in one line, says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise InvalidInput(
            f"{kind} {name} needs the package {distribution}, which is not there: "
            f"pip install 'trimtab-platform[{extra}]'",
            {kind: f"{distribution} is installed"},
        ) from None
