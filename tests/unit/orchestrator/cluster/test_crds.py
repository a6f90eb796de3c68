"""The CRDs: structural, bounded, with defaults and rules that people understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cel
import pytest

from orchestrator.cluster.documents import crd_files
from orchestrator.cluster.kinds import RewardModel, TrainingRun, TrainingRunSpec, read_object
from orchestrator.cluster.schema import with_defaults
from services.common.spec.algorithms import PpoSpec
from services.common.spec.kinds import KINDS
from services.common.spec.presets import PRESETS
from services.common.spec.run import RunSpec
from tests.unit.orchestrator.cluster.admission import admit, broken_rules, violations
from tests.unit.orchestrator.cluster.objects import CRDS, FULL_MODEL, FULL_RUN, MODEL, RUN, changed
from tests.unit.orchestrator.cluster.structural_rules import nodes, problems
from tests.unit.orchestrator.cluster.versions import VERSIONS, check

CHART = Path(__file__).parents[4] / "deploy" / "charts" / "trimtab-crds" / "templates"
MODELS: dict[str, type[TrainingRun] | type[RewardModel]] = {
    "TrainingRun": TrainingRun,
    "RewardModel": RewardModel,
}


def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("kind", CRDS)
def test_schema_is_structural_and_bounded(kind: str) -> None:
    """Every published rule of structural schemas holds, and every string, list and map has a bound."""
    assert list(problems(schema_of(kind))) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", CRDS)
def test_crd_fits_kubernetes_own_schema(kind: str, version: str) -> None:
    """Each supported release accepts the CRD's form, unknown fields being errors."""
    check(CRDS[kind], version)


def test_chart_has_what_the_generator_writes() -> None:
    """The chart's files are the generator's, byte for byte: `trimtab crds --out` makes them."""
    for name, text in crd_files().items():
        assert (CHART / name).read_text(encoding="utf-8") == text, f"trimtab crds --out {CHART}"
        assert "{{" not in text, "Helm would take it for a template"


@pytest.mark.parametrize("kind", CRDS)
def test_crd_fits_the_annotation_of_kubectl_apply(kind: str) -> None:
    """kubectl apply keeps the object in an annotation of at most 256 KiB."""
    assert len(json.dumps(CRDS[kind])) < 250_000


@pytest.mark.parametrize(
    "base", [RUN, MODEL, FULL_RUN, FULL_MODEL], ids=["run", "model", "full run", "full model"]
)
def test_server_and_models_agree(base: dict[str, Any]) -> None:
    """What the API server stores, its defaults filled in, reads as the same object as what was given."""
    kind = MODELS[base["kind"]]
    stored = admit(CRDS[base["kind"]], base)
    assert read_object(kind, stored) == read_object(kind, base)


def test_defaults_are_visible() -> None:
    """Defaults of nested sections are in the schema and in the words that kubectl explain prints."""
    stored = with_defaults(schema_of("TrainingRun"), RUN)["spec"]
    assert stored["algorithm"]["kind"] == "ppo"
    kl = schema_of("TrainingRun")["properties"]["spec"]["properties"]["algorithm"]["properties"]["kl"]
    assert kl["properties"]["coefficient"]["default"] == 0.05
    assert stored["optimiser"]["weightDecay"] == 0
    # But for what a preset may set: its default is in the words alone.
    betas = schema_of("TrainingRun")["properties"]["spec"]["properties"]["optimiser"]["properties"]["betas"]
    assert "betas" not in stored["optimiser"]
    assert "left out: 0.9, 0.999" in betas["description"]
    assert stored["roles"]["policy"]["scaling"]["mode"] == "Static"
    assert stored["roles"]["learner"]["nprocPerNode"] == 1
    words = schema_of("TrainingRun")["properties"]["spec"]["properties"]["sampling"]["properties"]
    assert words["topP"]["description"] == "Nucleus; 1 is off. (default 1.0)"


def test_bounds_are_in_the_form_of_openapi() -> None:
    """Exclusive bounds are booleans for numbers and the next integer for integers."""
    spec = schema_of("TrainingRun")["properties"]["spec"]["properties"]
    top_p = spec["sampling"]["properties"]["topP"]
    assert (top_p["minimum"], top_p["exclusiveMinimum"]) == (0, True)
    assert spec["seed"]["maximum"] == 2**31 - 1
    assert "exclusiveMaximum" not in spec["seed"]
    betas = spec["optimiser"]["properties"]["betas"]
    assert (betas["minItems"], betas["maxItems"], betas["items"]["type"]) == (2, 2, "number")
    assert "nullable" not in spec["optimiser"]["properties"]["valueLearningRate"]


def test_run_sections_are_the_services_models() -> None:
    """Every field of RunSpec but its name and the sources of one stage is in TrainingRun.spec: type and default.

    The algorithm is one that learns from rollouts: those of a file alone are refused in one line.
    """
    for name, field in RunSpec.model_fields.items():
        if name in ("name", "reward_sources"):
            continue
        ours = TrainingRunSpec.model_fields[name]
        assert ours.annotation == field.annotation or name == "algorithm", name
        assert ours.default == field.default, name


def test_every_rule_parses_and_has_its_message_once() -> None:
    """CEL reads every rule, and no two rules of one place say the same."""
    for kind in CRDS:
        for path, node in nodes(schema_of(kind)):
            rules = node.get("x-kubernetes-validations", [])
            for rule in rules:
                cel.compile(rule["rule"])
            assert len({rule["message"] for rule in rules}) == len(rules), path


def test_a_default_keeps_the_rules_as_it_stands() -> None:
    """The server holds each default against its object's rules before nested defaults are filled in."""
    for kind in CRDS:
        for path, node in nodes(schema_of(kind)):
            if isinstance(node.get("default"), dict):
                own = {key: value for key, value in node.items() if key != "properties"}
                assert list(broken_rules(own, node["default"], None, path)) == []


def test_subresources_columns_and_names() -> None:
    """status on both, scale with a selector on RewardModel; short names, category, unique columns with Age last."""
    for kind, short in (("TrainingRun", "trun"), ("RewardModel", "rmod")):
        spec = CRDS[kind]["spec"]
        version = spec["versions"][0]
        assert spec["names"]["shortNames"] == [short]
        assert spec["names"]["categories"] == ["trimtab"]
        assert version["subresources"]["status"] == {}
        names = [column["name"] for column in version["additionalPrinterColumns"]]
        assert len(set(names)) == len(names)
        assert names[-1] == "Age"
    scale = CRDS["RewardModel"]["spec"]["versions"][0]["subresources"]["scale"]
    spec, status = (schema_of("RewardModel")["properties"][part]["properties"] for part in ("spec", "status"))
    assert scale["specReplicasPath"] == ".spec.replicas"
    assert scale["statusReplicasPath"] == ".status.replicas"
    assert scale["labelSelectorPath"] == ".status.selector"
    assert spec["replicas"]["type"] == status["replicas"]["type"] == "integer"
    assert status["selector"]["type"] == "string"


VLLM = {"kind": "vllm", "url": "http://vllm:8000", "weightsFolder": "/weights"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (changed(RUN, roles__policy={"scaling": {"mode": "Auto", "min": 4, "max": 2}}), "min must not exceed"),
    (changed(RUN, roles__policy={"scaling": {"mode": "Auto", "max": 9, "poolLimit": 4}}), "poolLimit"),
    (changed(RUN, roles__policy={"scaling": {"mode": "Auto"}}), "needs scaling.max"),
    (changed(RUN, roles__policy={"scaling": {"max": 3}}), "for mode Auto only"),
    (changed(RUN, redis={"own": {}, "url": "redis://queue:6379"}), "one of own, url, urlSecret"),
    (changed(RUN, storage={}), "exactly one of pvc, objectStore"),
    (changed(RUN, roles__learner={"replicas": 1024, "nprocPerNode": 64}), "at most 4096"),
    (
        changed(RUN, algorithm={"kind": "trpo"}, roles__learner={"nprocPerNode": 2}),
        "trpo trains in one process",
    ),
    (
        changed(RUN, optimiser={"weightAverage": 0.99}, roles__learner={"replicas": 2}),
        "is kept by one process alone",
    ),
    (
        changed(RUN, roles__learner={"nprocPerNode": 4, "resources": {"limits": {"nvidia.com/gpu": 8}}}),
        "nprocPerNode must equal the limit",
    ),
    (changed(RUN, rollout__slip=["policy", "reference"]), "at least one stage named reward"),
    (changed(RUN, rollout__slip=["policy", "reward/Not_A_Name"]), "rollout.slip"),
    (
        changed(
            RUN,
            rollout__slip=["policy", "reference", "reward/model"],
            stages={"rewardModel": {"data": "/storage/pairs.jsonl"}},
        ),
        "would be called alike",
    ),
    (changed(RUN, rewardModel=None), "needs an entry in rewards"),
    (
        changed(RUN, rewards=[{"stage": "reward", "rule": "length", "path": "/m"}]),
        "exactly one of path, rule",
    ),
    (
        changed(RUN, rewards=[{"stage": "reward", "rule": "length", "function": "mine:score"}]),
        "exactly one of path, rule, function, rewardModelRef",
    ),
    (changed(RUN, stages__iterate={"rounds": 3}), "preferenceUrl"),
    (
        changed(RUN, rollout__slip=[f"reward/{i}" for i in range(6)], queueing={"queueName": "q"}),
        "Kueue admits at most 5",
    ),
    (
        changed(
            RUN,
            roles__policy={
                "env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]
            },
        ),
        "not both",
    ),
    (changed(RUN, engine={"kind": "tgi", "url": "http://tgi:80"}), "take no new weights"),
    (changed(RUN, engine={"url": "http://vllm:8000"}), "transformers runs in process"),
    (changed(RUN, engine={"kind": "vllm", "weightsFolder": "/w"}), "either url or command"),
    (changed(RUN, engine={"kind": "vllm", "url": "http://vllm:8000"}), "give weightsFolder"),
    (changed(RUN, engine=VLLM, roles__policy={"replicas": 2}), "takes weights from one replica"),
    (changed(RUN, engine=VLLM, algorithm={"kind": "nlpo"}), "nlpo bounds what is drawn"),
    (changed(RUN, engineKeySecret={"name": "k", "key": "k"}), "engineKeySecret is for an engine at a url"),
    (changed(MODEL, source={"path": "/m", "rule": "length"}), "exactly one of path, url, registry, rule"),
    (changed(MODEL, accessKeys={"secret": {"name": "k", "key": "k"}}), "in the clear"),
    (changed(MODEL, source={"path": "/storage/m"}), "volume"),
    (RUN | {"metadata": {"name": "a" * 39}}, "at most 38"),
    (RUN | {"metadata": {"name": "9lives"}}, "a letter first"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_server_refuses_in_words(data: dict[str, Any], words: str) -> None:
    """A mistake that the schema alone cannot see is refused by a rule whose message a person understands."""
    with pytest.raises(ValueError, match=words):
        admit(CRDS[data["kind"]], data)


@pytest.mark.parametrize("data", [data for data, _ in REFUSED[:-2]], ids=[words for _, words in REFUSED[:-2]])
def test_models_refuse_what_the_server_refuses(data: dict[str, Any]) -> None:
    """`trimtab render` refuses the same mistakes offline."""
    from services.common.errors import InvalidInput

    with pytest.raises(InvalidInput):
        read_object(MODELS[data["kind"]], data)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (changed(RUN, model__path="other/model"), "model cannot change"),
        (changed(RUN, storage={"pvc": {"claimName": "others"}}), "storage cannot change"),
        (changed(RUN, seed=2), "seed cannot change"),
        (changed(RUN, data__prompts="/storage/others.jsonl"), "data cannot change"),
        (changed(RUN, redis={"url": "redis://queue:6379"}), "redis cannot move"),
        (changed(RUN, redis={"acl": False}), "redis.acl cannot change"),
        (changed(RUN, redis__own={"storage": "20Gi"}), "redis.own.storage cannot change"),
        (changed(RUN, redis__own={"storageClassName": "fast"}), "redis.own.storageClassName cannot change"),
        (
            changed(RUN, rollout__slip=["policy", "reference", "reward", "reward/b"]),
            "only lose its last stages",
        ),
        (changed(RUN, rollout__slip=["policy", "reward", "reference"]), "only lose its last stages"),
        (changed(RUN, rollout__slip=["policy", "reward"]), "only lose its last stages"),
        (changed(RUN, rollout__reference="branch"), "rollout.reference cannot change"),
        (changed(RUN, queueing={"queueName": "q"}), "only while suspended"),
    ],
)
def test_what_cannot_change(new: dict[str, Any], words: str) -> None:
    """What a run is made of stays as it was created, and the message says what to do instead."""
    with pytest.raises(ValueError, match=words):
        admit(CRDS["TrainingRun"], new, RUN)


@pytest.mark.parametrize(
    "new",
    [
        changed(RUN, suspend=True),
        changed(RUN, steps=64),
        changed(RUN, roles__policy={"replicas": 5}),
        changed(RUN, optimiser={"learningRate": 2e-5}),
        changed(RUN, redis={"own": {"image": "valkey:9"}}),
        changed(RUN, engine=VLLM, engineKeySecret={"name": "vllm", "key": "key"}),
        changed(RUN, engine={"kind": "vllm", "command": ["vllm", "serve"], "weightsFolder": "/w"}),
    ],
)
def test_what_can_change(new: dict[str, Any]) -> None:
    """A living run is suspended, prolonged, resized and re-tuned in place."""
    admit(CRDS["TrainingRun"], new, RUN)


@pytest.mark.parametrize("queueing", [{"queueName": "other"}, {"queueName": "team", "priorityClass": "high"}])
def test_a_queue_changes_only_while_suspended(queueing: dict[str, Any]) -> None:
    """Kueue would not take it of a run that it has admitted, and nobody would hear of it."""
    there = changed(RUN, queueing={"queueName": "team"})
    new = changed(RUN, queueing=queueing)
    with pytest.raises(ValueError, match="only while suspended"):
        admit(CRDS["TrainingRun"], new, there)
    admit(CRDS["TrainingRun"], new, changed(there, suspend=True))
    admit(CRDS["TrainingRun"], changed(there, steps=64), there)


def test_a_queue_server_elsewhere_stays_where_it_is() -> None:
    """Its URL is the run's for good; who has its users in hand may add stages."""
    there = changed(RUN, redis={"url": "redis://queue:6379"})
    with pytest.raises(ValueError, match=r"redis\.url cannot change"):
        admit(CRDS["TrainingRun"], changed(there, redis={"url": "redis://other:6379"}), there)
    slip = ["policy", "reference", "reward", "reward/b"]
    admit(CRDS["TrainingRun"], changed(there, rollout__slip=slip), there)


def test_a_slip_can_lose_its_last_stages() -> None:
    """The users of those that stay have the rights that they need."""
    longer = changed(RUN, rollout__slip=["policy", "reference", "reward/a", "reward/b"])
    admit(CRDS["TrainingRun"], changed(longer, rollout__slip=["policy", "reference", "reward/a"]), longer)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_not_overruled_by_defaults_of_the_server(preset: str) -> None:
    """What the API server fills in beside a preset leaves every number of it as it is."""
    run = changed(RUN, algorithm={"kind": "ppo", "preset": preset})
    stored = admit(CRDS["TrainingRun"], run)
    assert read_object(TrainingRun, stored).spec.algorithm == PpoSpec(preset=preset)
    assert read_object(TrainingRun, stored).spec.run_spec("r") == read_object(TrainingRun, run).spec.run_spec(
        "r"
    )
    own = admit(CRDS["TrainingRun"], changed(run, algorithm__valueCoefficient=0.7))
    assert read_object(TrainingRun, own).spec.algorithm == PpoSpec(preset=preset, value_coefficient=0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_algorithm_reads_the_same_after_the_server(kind: str) -> None:
    """Defaults of one kind do not leak into another."""
    given = {"kind": kind} | ({"name": "ppo"} if kind == "other" else {})
    run = changed(RUN, algorithm=given)
    assert read_object(TrainingRun, admit(CRDS["TrainingRun"], run)) == read_object(TrainingRun, run)


def test_the_kind_of_algorithm_stays() -> None:
    """Another kind of algorithm is another run."""
    rules = schema_of("TrainingRun")["properties"]["spec"]["x-kubernetes-validations"]
    rule = next(rule for rule in rules if "algorithm.kind" in rule["message"])
    same, other = {"algorithm": {"kind": "ppo"}}, {"algorithm": {"kind": "grpo"}}
    assert cel.evaluate(rule["rule"], {"self": same, "oldSelf": same}) is True
    assert cel.evaluate(rule["rule"], {"self": other, "oldSelf": same}) is False


def test_quantities_are_numbers_or_texts() -> None:
    """8 and "64Gi" are both accepted; neither -1 nor "many" is."""
    memory = schema_of("RewardModel")["properties"]["spec"]["properties"]["resources"]["properties"]["limits"]
    for good in (8, "64Gi", "500m", "1.5", "2e3"):
        assert list(violations(memory, {"memory": good})) == []
    for bad in (-1, "many", True, "1 Gi"):
        assert list(violations(memory, {"memory": bad}))


def test_an_algorithm_without_rollouts_is_refused_on_a_cluster() -> None:
    """In one line that says where it runs."""
    with pytest.raises(ValueError, match="learns from a file, without rollouts: trimtab train"):
        TrainingRunSpec.model_validate(changed(RUN, algorithm={"kind": "dpo"})["spec"])
