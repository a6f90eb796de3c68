"""Service configurations, run files and --set expressions: a ConfigError of one line, or a configuration."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel

from services.common.errors import ConfigError
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from services.learner.config import LearnerConfig
from services.policy.config import PolicyConfig
from services.preference.config import PreferenceConfig
from services.reference.config import ReferenceConfig
from services.reward.config import RewardConfig
from tests.fuzz import odd
from tests.fuzz.surface import Surface, documented

_MODEL = {"path": "/models/tiny", "dtype": "float32", "threads": 1}
_QUEUE = {"url": "redis://127.0.0.1:6379", "run_uid": "run", "stage": "policy"}
_RUN = {
    "name": "small",
    "seed": 3,
    "steps": 4,
    "reward_model": "rule:length:target=40",
    "model": _MODEL,
    "data": {"prompts": "prompts.jsonl", "split": "train"},
    "sampling": {"max_new_tokens": 8, "temperature": 0.7, "stop": ["\n"]},
    "algorithm": {
        "kind": "ppo",
        "preset": "trl",
        "epochs": 2,
        "kl": {"kind": "adaptive", "coefficient": 0.05},
    },
    "optimiser": {"learning_rate": 1e-3, "betas": [0.9, 0.95]},
    "rollout": {"batch_groups": 8, "max_staleness": 1},
    "checkpoint": {"every_steps": 2},
}
_SERVER = {"server": {"port": 0, "host": "127.0.0.1"}, "log": {"level": "info"}, "tracing": {}}
_SOUND: tuple[tuple[type[BaseModel], dict[str, Any]], ...] = (
    (RunSpec, _RUN),
    (RunSpec, {**_RUN, "algorithm": {"kind": "grpo"}}),
    (PolicyConfig, {**_SERVER, "model": _MODEL, "queue": _QUEUE, "weights": {"address": "127.0.0.1:1"}}),
    (ReferenceConfig, {**_SERVER, "model": _MODEL, "token_budget": 512}),
    (
        RewardConfig,
        {
            **_SERVER,
            "models": [
                {"name": "mood", "rule": "sentiment"},
                {"name": "tiny", "path": "/models/reward"},
                {
                    "name": "sum",
                    "composite": {"components": [{"model": "mood", "weight": 0.5, "clip": [-1, 1]}]},
                },
            ],
        },
    ),
    (LearnerConfig, {**_SERVER, "run": _RUN, "out": "runs/small", "queue": _QUEUE}),
    (
        PreferenceConfig,
        {
            **_SERVER,
            "database_url": "sqlite:///x.db",
            "annotators": [{"name": "a", "rule": "sentiment", "margin": 0.1}],
            "rating": {"kind": "elo"},
            "web": {"public_url": "https://label.example.org"},
        },
    ),
)
_WORDS = (
    "auto",
    "ppo",
    "length:target=40",
    "regex:pattern=((((",
    "sqlite:///y.db",
    "unix:///x",
    "0-9",
    "cuda",
)
_TOML = (
    "[",
    "[[",
    "]",
    "=",
    '"',
    "'''",
    "{",
    "}",
    "[" * 2_000,
    "a.b=",
    "\n",
    "#",
    "1979-05-27T07:32:00Z",
    "0x",
    "1__0",
)
Sent = tuple[int, bytes, tuple[str, ...]]


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Over one file that is written anew for each input."""
    path = folder / "config.toml"

    def run(sent: Sent) -> str:
        which, data, overrides = sent
        path.write_bytes(data)
        outcome = documented(lambda: _loaded(path, which, overrides), ConfigError)
        return f"{_SOUND[which][0].__name__} {outcome}"

    def good() -> None:
        for which, (_, tree) in enumerate(_SOUND):
            path.write_text(toml(tree))
            _loaded(path, which, ["name=other"])

    good()
    yield Surface(draw, run, good)


def _loaded(path: Path, which: int, overrides: Any) -> None:
    try:
        load_toml(path, _SOUND[which][0], overrides)
    except ConfigError as error:
        assert "\n" not in str(error), f"more than one line: {str(error)[:200]!r}"
        assert len(str(error)) < 20_000, f"{len(str(error))} characters are no clear line"
        raise


def draw(rng: Random) -> Sent:
    """Which configuration, its file's bytes, and what --set puts on top."""
    which = rng.randrange(len(_SOUND))
    tree = _SOUND[which][1]
    how = rng.random()
    data = toml(odd.changed(rng, tree, _WORDS) if how > 0.3 else tree).encode("utf-8", "replace")
    if how > 0.8:
        data = odd.damaged(rng, data)
    if 0.7 < how < 0.8:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(_TOML).encode() + data[at:]
    overrides = tuple(_override(rng, tree) for _ in range(rng.choice((0, 0, 1, 2))))
    return which, data, overrides


def _override(rng: Random, tree: dict[str, Any]) -> str:
    if rng.random() < 0.1:
        return odd.text(rng)
    path = []
    here: Any = tree
    while isinstance(here, dict | list) and here and (not path or rng.random() < 0.8):
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        path.append(str(key))
        here = here[key]
    if rng.random() < 0.2:
        path[rng.randrange(len(path))] = rng.choice((odd.text(rng), "9" * 5_000, "-1", "0", odd.UNKNOWN))
    value = rng.choice((*_TOML, *_WORDS)) if rng.random() < 0.5 else _inline(odd.leaf(rng, _WORDS))
    return f"{'.'.join(path)}={value}"


def toml(tree: dict[str, Any]) -> str:
    """A TOML document: tables as tables, what lies deeper inline. What TOML has no word for is written as text."""
    plain = [
        f"{json.dumps(name)} = {_inline(value)}"
        for name, value in tree.items()
        if not isinstance(value, dict)
    ]
    tables = [
        "\n".join(
            [f"[{json.dumps(name)}]", *(f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items())]
        )
        for name, value in tree.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*plain, *tables, ""])


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if value is None:
        return '""'
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


assert tomllib.loads(toml(_RUN)) == _RUN
