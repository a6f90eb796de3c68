"""From a run's spec to the services' configurations."""

from __future__ import annotations

import importlib
import random
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator.local.layout import RunLayout
from orchestrator.local.services import (
    Ports,
    Surroundings,
    overlay,
    queue_users,
    role_of,
    service_config,
    service_process,
    services_of,
    stage_of,
)
from orchestrator.local.stack import Stack
from services.common.errors import ConfigError
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec

VLLM = {"kind": "vllm", "url": "http://h:8000", "weights_folder": "/w"}
NAMES = ("policy", "reference", "reward", "learner", "preference", "reward-hh")


def spec_of(**fields: Any) -> RunSpec:
    values = {"model": {"path": "m"}, "data": {"prompts": "p.jsonl"}, "reward_model": "rule:sentiment"}
    return RunSpec.model_validate({**values, **fields})


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    ports = {name: Ports(grpc=1000 + i, health=2000 + i, metrics=3000 + i) for i, name in enumerate(NAMES)}
    layout = RunLayout.prepare(tmp_path / "run")
    return Surroundings(layout=layout, queue_url="redis://h:1", run_uid="u-1", ports=ports)


def test_services_follow_the_slip() -> None:
    """Each stage of the slip has its service; the learner comes last."""
    assert services_of(spec_of()) == ("policy", "reference", "reward", "learner")
    rollout = {"slip": ["policy", "reward/hh", "reward/rules"], "reference": "branch"}
    assert services_of(spec_of(rollout=rollout)) == ("policy", "reward-hh", "reward-rules", "learner")


def test_every_service_gets_fixed_ports_and_its_stage(around: Surroundings) -> None:
    """A restarted service comes back on the same ports and works on the same stage."""
    spec = spec_of(rollout={"slip": ["policy", "reference", "reward/hh"]})
    config = service_config("reward-hh", spec, around)
    assert config["server"] == {"host": "127.0.0.1", "port": 1005, "health_port": 2005, "metrics_port": 3005}
    assert config["queue"] == {"url": "redis://h:1", "run_uid": "u-1", "stage": "reward/hh"}


def test_no_service_has_the_queues_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ports of a run are of one draw: two draws may come to the same, as here they would."""
    monkeypatch.setattr("orchestrator.local.ports.random.SystemRandom", lambda: random.Random(1))
    stack = Stack(RunLayout.prepare(tmp_path / "run"), spec_of(), ["policy"])
    used = [urlsplit(stack.queue_url).netloc.rpartition("@")[2]]
    used += [
        stack.endpoint(name, kind) for name in ("policy", "learner") for kind in ("grpc", "health", "metrics")
    ]
    assert len(set(used)) == 7


def test_every_service_has_a_queue_user_of_its_own(around: Surroundings) -> None:
    """Each reads its own URL; a stage that no slip names leads to the learner; other roles' names stay unknown."""
    spec = spec_of(rollout={"slip": ["policy", "reward/hh"], "reference": "branch"})
    stages = [stage_of(name, spec) for name in NAMES if name != "preference"]
    users = queue_users(stages, spec, "u-1")
    assert sorted(users.passwords) == [
        "learner",
        "operator",
        "policy",
        "reference",
        "reward",
        "reward/hh",
        "viewer",
    ]
    urls = {name: users.url(stage_of(name, spec), "redis://h:1") for name in NAMES if name != "preference"}
    config = service_config("reward-hh", spec, replace(around, queue_urls=urls))
    assert config["queue"]["url"] == f"redis://u-1.reward-hh:{users.passwords['reward/hh']}@h:1/0"
    assert not any(password in line for password in users.passwords.values() for line in users.lines())
    policy, reference = (
        next(line for line in users.lines() if line.startswith(f"user u-1.{name} "))
        for name in ("policy", "reference")
    )
    assert "%W~trimtab:{u-1}:stage:reward/hh " in policy
    assert "stage:reward" not in reference


def test_a_replica_of_a_stage_has_that_stages_user(tmp_path: Path) -> None:
    """A service whose settings name another's stage works on it, with the rights of its steps."""
    spec, layout = spec_of(), RunLayout.prepare(tmp_path / "run")
    settings = {"policy-2": {"queue": {"stage": "policy"}}}
    stack = Stack(layout, spec, ("policy", "policy-2", "reference", "reward", "learner"), settings=settings)
    assert stack.queue_url_of("policy-2") == stack.queue_url_of("policy")
    assert stack.queue_url_of("reference") != stack.queue_url_of("policy")


def test_the_policy_knows_where_weights_come_from(around: Surroundings) -> None:
    """The learner's address is settled before the learner starts."""
    assert service_config("policy", spec_of(), around)["weights"]["address"] == "127.0.0.1:1003"


@pytest.mark.parametrize(("asked", "most"), [(32, 4096), (5000, 5000)])
def test_a_runs_completions_fit_its_policy(around: Surroundings, asked: int, most: int) -> None:
    """A run whose completions are longer than a policy lets a call ask for raises that bound."""
    config = service_config("policy", spec_of(sampling={"max_new_tokens": asked}), around)
    assert config["max_new_tokens"] == most


@pytest.mark.parametrize(
    ("fields", "tables"),
    [
        ({}, {}),
        (
            {"algorithm": {"kind": "nlpo", "top_p": 0.7}},
            {"decoding": {"mask": {"top_p": 0.7, "min_tokens": 100}}},
        ),
        ({"engine": VLLM}, {"engine": VLLM}),
    ],
)
def test_the_policy_knows_what_generates(
    around: Surroundings, fields: dict[str, Any], tables: dict[str, Any]
) -> None:
    """The run's engine, and the mask of an algorithm that bounds what is drawn; its service takes them as written."""
    service_process("policy", service_config("policy", spec_of(**fields), around), around.layout)
    path = around.layout.service_config("policy")
    read = tomllib.loads(path.read_text())
    assert {name: read[name] for name in ("engine", "decoding") if name in read} == tables
    config = load_toml(path, importlib.import_module("services.policy.config").PolicyConfig)
    assert config.engine.kind == tables.get("engine", {}).get("kind", "transformers")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"engine": {"kind": "tgi", "url": "http://h:1"}},
            "tgi takes no new weights, which a run's policy must",
        ),
        ({"engine": {"kind": "openai", "url": "http://h:1"}}, "openai takes no new weights"),
        ({"engine": {"kind": "vllm", "url": "http://h:1"}}, r"engine\.weights_folder is missing"),
        ({"engine": {"kind": "vllm"}}, "the vllm engine needs a url or a command"),
        ({"engine": {"kind": "vllm", "url": "h:1"}}, "match"),
        ({"engine": VLLM, "sampling": {"temperature": 0.7}}, r"sampling\.temperature stays 1"),
        ({"engine": VLLM, "sampling": {"top_k": 4}}, "top_k and min_new_tokens 0"),
        ({"engine": VLLM, "sampling": {"top_p_end": 0.5}}, "top_p 1"),
        ({"engine": VLLM, "sampling": {"fixed_length": True}}, "min_new_tokens 0"),
        (
            {"engine": VLLM, "algorithm": {"kind": "nlpo"}},
            r"vllm cannot change what is drawn.*decoding\.mask",
        ),
        ({"engine": VLLM, "algorithm": {"kind": "dpo"}}, "an offline run generates nothing"),
        ({"sampling": {"stop": ["\n", ""]}}, "at least 1 character"),
    ],
)
def test_a_run_says_which_engine_cannot(fields: dict[str, Any], words: str) -> None:
    """Before anything is started, in one line: what the engine lacks, and what would do."""
    with pytest.raises(ValueError, match=words):
        spec_of(**fields)


def test_weights_are_shared_where_there_is_memory_for_it(around: Surroundings) -> None:
    """Learner and policy name the same folder; without one, and offline where nobody reads, they name none."""
    shared = replace(around, weights_folder="/somewhere/u-1")
    for name in ("policy", "learner"):
        assert service_config(name, spec_of(), shared)["weights"]["folder"] == "/somewhere/u-1"
        assert service_config(name, spec_of(), around)["weights"]["folder"] == ""
    offline = spec_of(algorithm={"kind": "dpo"})
    assert service_config("learner", offline, shared)["weights"]["folder"] == ""


def test_the_learner_gets_the_whole_run(around: Surroundings) -> None:
    """What the learner reads back from TOML is the same spec."""
    spec = spec_of(seed=7, sampling={"stop": ["\n"]})
    service_process("learner", service_config("learner", spec, around), around.layout)
    path = around.layout.service_config("learner")
    read = tomllib.loads(path.read_text())
    assert RunSpec.model_validate(read["run"]) == spec
    assert read["out"] == str(around.layout.root)
    assert path.stat().st_mode & 0o077 == 0  # the queue's password stands in it


def test_the_reward_is_a_folder_or_a_rule(around: Surroundings) -> None:
    """What the spec calls the reward model is the one model of the reward service, by the stage's name."""
    config = service_config("reward", spec_of(), around)
    assert config["models"] == [{"name": "reward", "rule": "sentiment"}]
    config = service_config("reward-hh", spec_of(reward_model="models/hh"), around)
    assert config["models"] == [{"name": "hh", "path": "models/hh"}]
    assert "models" not in service_config("reward", spec_of(reward_model=""), around)


def test_preference_reads_no_queue(around: Surroundings) -> None:
    """Only workers of stages know the queue."""
    assert "queue" not in service_config("preference", spec_of(), around)


def test_settings_are_laid_over(around: Surroundings) -> None:
    """Settings win field by field; lists are replaced whole."""
    assert overlay({"a": {"x": 1, "y": 2}, "l": [1]}, {"a": {"y": 3}, "l": [2, 3]}) == {
        "a": {"x": 1, "y": 3},
        "l": [2, 3],
    }
    config = service_config("policy", spec_of(), around, {"server": {"drain_seconds": 3}})
    assert config["server"]["drain_seconds"] == 3
    assert config["server"]["port"] == 1000


@pytest.mark.parametrize("name", NAMES)
def test_each_service_accepts_what_is_written_for_it(name: str, around: Surroundings) -> None:
    """The file that the orchestrator writes is a valid configuration of the real service."""
    kind = name.split("-", maxsplit=1)[0]
    module = importlib.import_module(f"services.{kind}.config")
    spec = spec_of(rollout={"slip": ["policy", "reference", "reward", "reward/hh"]})
    service_process(name, service_config(name, spec, around), around.layout)
    config = load_toml(around.layout.service_config(name), getattr(module, f"{kind.title()}Config"))
    assert config.name == name
    assert config.server.port == around.ports[name].grpc


def test_unknown_service_is_told() -> None:
    """A stage that no service serves is the user's mistake."""
    with pytest.raises(ConfigError, match="no service critic: expected one of policy, "):
        role_of("critic")
