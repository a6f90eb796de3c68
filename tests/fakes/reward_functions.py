"""Reward functions as users write them, good and bad ones. Imported in worker processes by the tests."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

not_a_function = 3


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def plain(prompts: list[str], completions: list[str]) -> list[float]:
    """Takes no other keyword, though there are columns and messages."""
    return [
        len(prompt) + len(completion) / 10 for prompt, completion in zip(prompts, completions, strict=True)
    ]


def numbers(completions: list[str]) -> Any:
    """Whatever can be taken for a number."""
    import numpy as np

    return np.array([len(completion) for completion in completions], dtype=np.float32)


def mixed(completions: list[str]) -> list[Any]:
    """Evaluates each completion: what a careless function may put into its list."""
    known = {
        "nan": math.nan,
        "inf": math.inf,
        "none": None,
        "text": "0.5",
        "true": True,
        "big": 10**30,
        "list": [1],
    }
    return [known.get(completion, 1.5) for completion in completions]


def uses_columns(completions: list[str], answer: list[str | None], **columns: Any) -> list[float]:
    return [
        float(completion == right) + (0.5 if hint else 0.0)
        for completion, right, hint in zip(completions, answer, columns.get("hint", answer), strict=True)
    ]


def uses_messages(messages: list[list[dict[str, str]]], **_: Any) -> list[float]:
    return [
        100 * len(each) + len(each[-1]["content"]) + (each[0]["role"] == "system") / 2 for each in messages
    ]


async def awaited(completions: list[str], **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(id(asyncio.get_running_loop()) > 0) for _ in completions]


def shape(completions: list[str], **_: Any) -> Any:
    """Returns what the first completion names."""
    values = [1.0] * len(completions)
    shapes: dict[str, Any] = {
        "string": "1.0",
        "none": None,
        "short": values[1:],
        "long": [*values, 1.0],
        "dict": dict.fromkeys(range(len(values)), 1.0),
        "number": 1.0,
    }
    return shapes.get(completions[0], values)


def misbehaves(completions: list[str], **columns: Any) -> list[float]:  # noqa: C901 - a list of misdeeds
    """Does what a completion names, else returns the lengths."""
    for index, completion in enumerate(completions):
        if completion == "raise":
            raise ValueError("of\n  two lines")
        if completion == "sleep":
            time.sleep(3600)
        if completion == "wait":
            while not (Path(columns["folder"][index]) / "go").exists():
                time.sleep(0.01)
        if completion == "loop":
            while True:
                pass
        if completion == "hold the interpreter":
            ctypes.PyDLL(None).sleep(3600)
        if completion == "sys.exit":
            sys.exit(3)
        if completion == "exit":
            os._exit(3)
        if completion == "segfault":
            ctypes.string_at(0)
        if completion == "print":
            print("1.0\n" * 100_000, flush=True)
            os.write(1, b"\x00\x00\x00\x02[]")
        if completion == "close":
            os.closerange(3, 256)
        if completion == "fork" and os.fork() == 0:
            return [9.0] * len(completions)
        if completion == "leave children":
            leave_children(Path(columns["folder"][index]))
        if completion == "thread":
            threading.Thread(target=time.sleep, args=(3600,)).start()
        if completion == "recurse":
            misbehaves(completions, **columns)
    return [float(len(completion)) for completion in completions]


def leave_children(folder: Path) -> None:
    """A child, and one in a session of its own whose parent has ended; their process ids as files of the folder."""
    script = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(3600)"
    subprocess.Popen([sys.executable, "-c", script, str(folder / "child")])
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen([sys.executable, "-c", script, str(folder / "orphan")])
        os._exit(0)
    os.wait()
    while not all((folder / name).exists() and (folder / name).read_text() for name in ("child", "orphan")):
        time.sleep(0.01)
    # Last and at once: who sees this one sees all of them.
    (folder / "worker.part").write_text(str(os.getpid()))
    (folder / "worker.part").rename(folder / "worker")


def slow_to_raise(completions: list[str], **_: Any) -> list[float]:
    """Takes 0.4 s of the limit and raises for more than one row."""
    time.sleep(0.4)
    if len(completions) > 1:
        raise ValueError("one at a time")
    return [1.0]


class Callable:
    """An object that can be called."""

    def __call__(self, completions: list[str]) -> list[float]:
        return [2.0 for _ in completions]


instance = Callable()


def trl_tokens(completion_ids: list[list[int]], prompts: list[Any], **_: Any) -> list[float | None]:
    """As for TRL: the sum of a completion's ids, None for one without."""
    return [float(sum(ids)) if ids else None for ids in completion_ids]
