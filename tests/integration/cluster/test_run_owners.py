"""A TrainingRun and objects under its names that are not its own."""

from __future__ import annotations

import pytest

from orchestrator.cluster.client.errors import Refused
from orchestrator.cluster.control.resources import Ref
from tests.integration.cluster.harness import Harness
from tests.integration.cluster.runs import start
from tests.unit.orchestrator.cluster.objects import MODEL, RUN


def test_what_belongs_to_somebody_else_is_left_as_it_is(harness: Harness) -> None:
    """A ServiceAccount of the user's under the run's name: refused in words, and still there after the run."""
    metadata = {"name": "helpful", "namespace": harness.namespace, "annotations": {"role": "theirs"}}
    theirs = harness.api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, "kubectl"
    )
    harness.submit(RUN)
    for _ in range(2):
        with pytest.raises(Refused, match="ServiceAccount helpful exists and belongs to somebody else"):
            harness.reconcile()
    assert harness.conditions()["Degraded"] == ("True", "Refused")
    assert harness.names("Job") == set()
    found = harness.get("ServiceAccount", "helpful")
    assert found["metadata"].get("labels") == theirs["metadata"].get("labels")
    assert "ownerReferences" not in found["metadata"]
    harness.api.delete(Ref("TrainingRun", harness.namespace, "helpful"))
    harness.bring(lambda: harness.find("TrainingRun", "helpful") is None)
    assert harness.find("ServiceAccount", "helpful")


def test_a_job_of_somebody_else_is_not_the_learner(harness: Harness) -> None:
    """Nobody waits for ever for a Job that is not ours."""
    template = {
        "metadata": {},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]},
    }
    metadata = {"name": "helpful-learner-1", "namespace": harness.namespace}
    spec = {"template": template, "suspend": True}
    harness.api.create(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}, "kubectl"
    )
    harness.submit(RUN)
    with pytest.raises(Refused, match="Job helpful-learner-1 exists"):
        harness.reconcile()
    assert harness.conditions()["Degraded"] == ("True", "Refused")


def test_a_name_is_free_once_the_others_object_is_gone(harness: Harness) -> None:
    """No watch tells the end of what carries none of our labels, so the next look asks for it anew."""
    harness.submit(RUN)
    harness.look()
    account, run = (Ref(kind, harness.namespace, "helpful") for kind in ("ServiceAccount", "TrainingRun"))
    metadata = {"name": account.name, "namespace": account.namespace}
    harness.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, "kubectl")
    with pytest.raises(Refused, match="ServiceAccount helpful exists"):
        harness.runs.handle(run)
    harness.api.delete(account)
    harness.runs.handle(run)
    assert harness.get("ServiceAccount", "helpful")["metadata"]["ownerReferences"][0]["name"] == "helpful"


def test_a_secret_of_somebody_else_is_not_the_queues(harness: Harness) -> None:
    """It would go with whoever made it, and knows no users of this run: refused in words until it is gone."""
    metadata = {"name": "helpful-redis", "namespace": harness.namespace}
    harness.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata}, "kubectl")
    harness.submit(RUN)
    with pytest.raises(Refused, match="Secret helpful-redis exists and belongs to somebody else"):
        harness.reconcile()
    assert harness.names("Job") == set()
    harness.api.delete(Ref("Secret", harness.namespace, "helpful-redis"))
    harness.settle()
    assert "users.acl" in harness.get("Secret", "helpful-redis")["data"]


def test_a_run_and_a_reward_model_of_one_name_do_not_fight(harness: Harness) -> None:
    """Whoever comes second is told whose ServiceAccount it is, and the first has nothing to write."""
    harness.submit({**MODEL, "metadata": {"name": "helpful"}})
    harness.settle("helpful", "RewardModel")
    harness.submit(RUN)
    for _ in range(2):
        with pytest.raises(Refused, match="belongs to RewardModel helpful"):
            harness.reconcile()
    assert harness.settle("helpful", "RewardModel") == []
    assert harness.conditions()["Degraded"] == ("True", "Refused")


def test_what_lost_its_owner_and_kept_its_labels_is_taken_back(harness: Harness) -> None:
    """As after a deletion with --cascade=orphan, and the same run submitted again."""
    start(harness)
    ref = Ref("Deployment", harness.namespace, "helpful-policy")
    harness.api.merge(ref, {"metadata": {"ownerReferences": None}}, "kubectl")
    harness.settle()
    assert harness.get(*ref[::2])["metadata"]["ownerReferences"][0]["kind"] == "TrainingRun"
