"""`trimtab submit`, `runs`, `suspend`, `resume`, `scale`, `delete`, `logs` over a cluster, as a person meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cluster.client.connect import namespace_of
from orchestrator.cluster.control.resources import Ref
from services.common.errors import ConfigError, InvalidInput, NotFound, Unavailable
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, running
from tests.unit.orchestrator.cluster.objects import RUN, changed

Trimtab = Callable[..., str]


@pytest.fixture
def trimtab(kubeconfig: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Trimtab:
    """The command, in this test's namespace."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert harness.api is not None

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "-n", harness.namespace], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def written(folder: Path, *objects: Any) -> Path:
    path = folder / "run.yaml"
    items = [{**item, "metadata": {"name": item["metadata"]["name"]}} for item in objects]
    path.write_text(yaml.safe_dump_all(items), encoding="utf-8")
    return path


def test_submit_gives_what_the_file_says_and_no_more(
    trimtab: Trimtab, harness: Harness, tmp_path: Path
) -> None:
    """Made first, changed then; defaults are the server's, so they are nobody's fields."""
    said = trimtab("submit", "-f", str(written(tmp_path, RUN)))
    assert said == f"TrainingRun helpful in {harness.namespace} is submitted\n"
    trimtab("submit", "-f", str(written(tmp_path, changed(RUN, steps=77))))
    run = harness.get("TrainingRun", "helpful")
    assert run["spec"]["steps"] == 77
    fields = next(one for one in run["metadata"]["managedFields"] if one["manager"] == "trimtab-cli")
    assert set(fields["fieldsV1"]["f:spec"]) == {"f:model", "f:data", "f:rewardModel", "f:storage", "f:steps"}


def test_a_wrong_file_is_told_before_anything_is_sent(
    trimtab: Trimtab, harness: Harness, tmp_path: Path
) -> None:
    """One line with document and field; the good document before it is not sent either."""
    with pytest.raises(ConfigError, match=r"run.yaml: document 2: spec.steps: "):
        trimtab("submit", "-f", str(written(tmp_path, RUN, changed(RUN, steps=0))))
    assert harness.names("TrainingRun") == set()


def test_an_engine_is_submitted_and_one_that_cannot_train_is_told(
    trimtab: Trimtab, harness: Harness, tmp_path: Path
) -> None:
    """The run's engine reaches the server as the file says it; of a generator without new weights nothing is sent."""
    vllm = {"kind": "vllm", "url": "http://vllm:8000", "weightsFolder": "/weights"}
    key = {"name": "vllm", "key": "token"}
    trimtab("submit", "-f", str(written(tmp_path, changed(RUN, engine=vllm, engineKeySecret=key))))
    spec = harness.get("TrainingRun", "helpful")["spec"]
    assert {name: spec["engine"][name] for name in vllm} == vllm
    assert spec["engineKeySecret"] == key
    for fields, words in (
        ({"engine": {"kind": "tgi", "url": "http://tgi:80"}}, "engine.kind = tgi takes no new weights"),
        ({"engine": {"kind": "vllm", "url": "http://vllm:8000"}}, "weights_folder is missing"),
        ({"engine": {"kind": "vllm"}}, "the vllm engine needs a url or a command"),
        ({"engine": vllm, "sampling": {"topK": 5}}, "samples at temperature 1 with nothing cut off"),
    ):
        with pytest.raises(ConfigError, match=rf"run.yaml: .*spec.*: .*{words}"):
            trimtab("submit", "-f", str(written(tmp_path, changed(RUN, **fields))))
    assert harness.get("TrainingRun", "helpful")["spec"] == spec


def test_runs_are_listed(trimtab: Trimtab, harness: Harness, tmp_path: Path) -> None:
    """State, stage, steps, replicas, a line each; one by name in full; JSON for programs."""
    assert trimtab("runs") == f"there are no runs in {harness.namespace}\n"
    harness.submit(RUN)
    harness.settle()
    heading, row = trimtab("runs").splitlines()
    assert heading.split()[:4] == ["NAME", "STATE", "STAGE", "STEP"]
    name, state, *figures = row.split()[:6]
    assert (name, figures) == ("helpful", ["rl", "0/32", "-", "-"])
    assert state in harness.either("Starting", "Stalled")
    assert row.split()[6:9] == ["0/1", "0/1", "0/1"]
    assert [item["metadata"]["name"] for item in json.loads(trimtab("runs", "-o", "json"))] == ["helpful"]
    told = trimtab("runs", "helpful")
    assert "LearnerReady" in told
    assert any(line.split() == ["policy", "0", "of", "1", "serve"] for line in told.splitlines())
    assert json.loads(trimtab("runs", "helpful", "-o", "json"))["kind"] == "TrainingRun"


def test_suspend_and_resume(trimtab: Trimtab, harness: Harness) -> None:
    """They set spec.suspend, nothing else."""
    harness.submit(RUN)
    trimtab("suspend", "helpful")
    assert harness.get("TrainingRun", "helpful")["spec"]["suspend"] is True
    trimtab("resume", "helpful")
    assert harness.get("TrainingRun", "helpful")["spec"]["suspend"] is False


def test_scale_goes_to_whoever_owns_the_number(trimtab: Trimtab, harness: Harness) -> None:
    """Static: the spec; External: the Deployment's /scale; Auto: refused, with what to do."""
    own = {"stage": "reward/b", "rule": "sentiment", "role": {"replicas": 1}}
    harness.submit(
        changed(
            RUN,
            rollout__slip=["policy", "reference", "reward/a", "reward/b"],
            rewards=[own],
            roles__reference__scaling__mode="External",
            roles__reward__scaling={"mode": "Auto", "max": 4},
        )
    )
    harness.settle()
    trimtab("scale", "helpful", "policy=4", "reference=3", "reward-b=2")
    harness.settle()
    names = ("policy", "reference", "reward-b")
    assert [harness.replicas(f"helpful-{name}") for name in names] == [4, 3, 2]
    assert harness.get("TrainingRun", "helpful")["spec"]["roles"]["policy"]["replicas"] == 4
    with pytest.raises(InvalidInput, match="reward-a is scaled by the planner"):
        trimtab("scale", "helpful", "policy=1", "reward-a=2")
    assert harness.replicas("helpful-policy") == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scale", "helpful", "policy"], "policy: expected role=number"),
        (["scale", "helpful", "policy=-1"], "policy=-1: expected role=number"),
        (["scale", "helpful", "critic=2"], "helpful has no role critic: policy, reference, reward"),
        (["logs", "--cluster", "helpful", "-f"], "--follow is for runs here"),
    ],
)
def test_mistakes_are_one_line(trimtab: Trimtab, harness: Harness, words: list[str], told: str) -> None:
    """That says what was expected."""
    harness.submit(RUN)
    with pytest.raises(InvalidInput, match=told):
        trimtab(*words) if words[0] != "logs" else CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize("command", [["suspend"], ["resume"], ["runs"], ["delete"], ["scale", "policy=1"]])
def test_a_run_that_is_not_there(trimtab: Trimtab, command: list[str]) -> None:
    """Says so, and how to see which are."""
    with pytest.raises(NotFound, match="there is no TrainingRun nobody in namespace"):
        trimtab(command[0], "nobody", *command[1:])


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a file that is none, nobody who answers: a line each, no stack."""
    runner = CliRunner()
    missing = str(tmp_path / "none")
    with pytest.raises(ConfigError, match="no such file"):
        runner.invoke(app, ["runs", "--kubeconfig", missing], catch_exceptions=False)
    broken = tmp_path / "broken"
    broken.write_text("apiVersion: v1\nkind: Config\n")
    with pytest.raises(ConfigError, match="kubeconfig: "):
        runner.invoke(app, ["runs", "--kubeconfig", str(broken)], catch_exceptions=False)
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    nobody = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "u", "user": {}}],
    }
    broken.write_text(json.dumps(nobody))
    with pytest.raises(Unavailable, match="list trainingruns: the API server does not answer"):
        runner.invoke(app, ["runs", "--kubeconfig", str(broken)], catch_exceptions=False)


def test_the_files_mistake_comes_before_the_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits a file that is not there, or is wrong, hears of the file, be there a cluster or not."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    wrong = tmp_path / "run.yaml"
    wrong.write_text("kind: TrainingRun\nmetadata: {name: x}\nspec: {model: {}}\n")
    for file, told in ((tmp_path / "missing.yaml", "missing.yaml"), (wrong, "run.yaml")):
        with pytest.raises(ConfigError, match=told):
            CliRunner().invoke(app, ["submit", "-f", str(file)], catch_exceptions=False)


def test_delete(trimtab: Trimtab, harness: Harness) -> None:
    """Asks the server; the operator's finaliser does the rest."""
    harness.submit(RUN)
    harness.settle()
    assert trimtab("delete", "helpful") == "helpful is being deleted\n"
    assert harness.get("TrainingRun", "helpful")["metadata"]["deletionTimestamp"]


def test_logs_are_of_each_pod(
    trimtab: Trimtab, harness: Harness, faulty: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without pods says so; with one its last lines come with its name before them."""
    from orchestrator.cluster.client.api import Api
    from orchestrator.cluster.commands import Cluster

    harness.submit(RUN)
    harness.settle()
    cluster = Cluster(None, None, harness.namespace)
    lines: list[tuple[str, str]] = []
    with pytest.raises(NotFound, match="helpful has no pods of policy"):
        cluster.logs("helpful", "policy", 5, lambda pod, line: lines.append((pod, line)))
    harness.add_pod(harness.get("Deployment", "helpful-policy"), "policy-0", running())
    monkeypatch.setattr(
        Api, "log", lambda _api, pod, container, count: f"{container} {count}\nlast of {pod.name}\n"
    )
    cluster.logs("helpful", "policy", 5, lambda pod, line: lines.append((pod, line)))
    assert lines == [("policy-0", "policy 5"), ("policy-0", "last of policy-0")]


def test_a_pod_that_has_not_begun_does_not_hide_the_logs_of_the_others(
    trimtab: Trimtab, harness: Harness, faulty: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of it the server's words are told, and of one that went meanwhile; then comes the next."""
    from orchestrator.cluster.client.api import Api
    from orchestrator.cluster.client.errors import Refused
    from orchestrator.cluster.commands import Cluster

    harness.submit(RUN)
    harness.settle()
    for name in ("policy-0", "policy-1", "policy-2"):
        harness.add_pod(harness.get("Deployment", "helpful-policy"), name, running())
    why: dict[str, Exception] = {"policy-0": Refused("waits to start"), "policy-1": NotFound("is gone")}

    def log(_api: Api, pod: Ref, _container: str, _lines: int) -> str:
        if pod.name in why:
            raise why[pod.name]
        return "trains"

    monkeypatch.setattr(Api, "log", log)
    lines: list[tuple[str, str]] = []
    Cluster(None, None, harness.namespace).logs("helpful", "", 5, lambda *told: lines.append(told))
    assert lines == [("policy-0", "waits to start"), ("policy-1", "is gone"), ("policy-2", "trains")]


def test_status_of_a_run_on_the_cluster(trimtab: Trimtab, harness: Harness, kubeconfig: Path) -> None:
    """`trimtab status --cluster` is `trimtab runs RUN` in the context's namespace."""
    metadata = {"name": f"s-{harness.namespace[-8:]}", "namespace": namespace_of(kubeconfig)}
    harness.api.apply({**RUN, "metadata": metadata}, "test")
    try:
        result = CliRunner().invoke(app, ["status", "--cluster", metadata["name"], "-o", "json"])
        assert json.loads(result.stdout)["metadata"]["name"] == metadata["name"]
    finally:
        harness.api.delete(Ref("TrainingRun", metadata["namespace"], metadata["name"]))


def test_status_and_logs_of_another_namespace(
    harness: Harness, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--namespace and --kubeconfig lead `status --cluster` and `logs --cluster` where they lead the other commands."""
    from orchestrator.cluster.commands import Cluster

    harness.submit(RUN)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(
        Cluster, "logs", lambda self, _run, _service, lines, _tell: asked.append((self.namespace, lines))
    )
    where = ["--cluster", "helpful", "--namespace", harness.namespace, "--kubeconfig", str(kubeconfig)]
    told = CliRunner().invoke(app, ["status", *where, "-o", "json"], catch_exceptions=False).stdout
    assert json.loads(told)["metadata"]["namespace"] == harness.namespace
    CliRunner().invoke(app, ["logs", *where, "-n", "7"], catch_exceptions=False)
    assert asked == [(harness.namespace, 7)]


@pytest.mark.parametrize("command", ["status", "logs"])
def test_flags_of_a_cluster_need_its_run(command: str) -> None:
    """They would be passed over in silence for a run here."""
    with pytest.raises(InvalidInput, match="--namespace is for a run on a cluster: give --cluster RUN"):
        CliRunner().invoke(app, [command, "--namespace", "rlhf"], catch_exceptions=False)


def test_help_loads_no_client() -> None:
    """The commands import what they need when they run."""
    import subprocess

    program = "import sys; from orchestrator.cli import app; print('kubernetes' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
