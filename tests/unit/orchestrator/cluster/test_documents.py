"""`trimtab crds` and `trimtab render`, from file to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cluster.documents import crd_files, read_objects, render_file, to_yaml
from services.common.errors import ConfigError
from tests.unit.orchestrator.cluster.objects import FULL_RUN, MODEL, RUN, changed


def written(folder: Path, *objects: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    return path


def loaded(text: str) -> list[Any]:
    """By libyaml where it is there: the CRDs are long."""
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def test_render_prints_what_would_be_applied(tmp_path: Path) -> None:
    """Each object's manifests, as YAML that reads back; with --update no Deployment names replicas."""
    path = written(tmp_path, FULL_RUN, MODEL)
    result = CliRunner().invoke(app, ["render", "-f", str(path)])
    assert result.exit_code == 0, result.output
    manifests = loaded(result.stdout)
    assert {"helpful-policy", "hh"} <= {m["metadata"]["name"] for m in manifests if m["kind"] == "Deployment"}
    assert all("replicas" in m["spec"] for m in manifests if m["kind"] == "Deployment")
    updated = loaded(render_file(path, "default", update=True))
    assert not [m for m in updated if m["kind"] == "Deployment" and "replicas" in m["spec"]]


def test_an_object_without_namespace_gets_the_flags(tmp_path: Path) -> None:
    """As with kubectl, -n is for objects that name none."""
    plain = {**RUN, "metadata": {"name": "helpful"}}
    first, second = read_objects(written(tmp_path, plain, RUN), "team")
    assert (first.metadata.namespace, second.metadata.namespace) == ("team", "rlhf")


def test_crds_are_printed_or_written(tmp_path: Path) -> None:
    """To stdout as one stream, or a file each."""
    result = CliRunner().invoke(app, ["crds"])
    assert [crd["spec"]["names"]["kind"] for crd in loaded(result.stdout)] == [
        "TrainingRun",
        "RewardModel",
    ]
    CliRunner().invoke(app, ["crds", "--out", str(tmp_path / "crds")])
    assert {path.name for path in (tmp_path / "crds").iterdir()} == set(crd_files())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "run.yaml:1: expected YAML"),
        ("", "there is no object"),
        ("- 1", "expected an object"),
        (
            "kind: Pod\napiVersion: v1",
            "expected kind TrainingRun or RewardModel of trimtab.dev/v1alpha1, got v1 Pod",
        ),
        (
            yaml.safe_dump(changed(RUN, roles={"polcy": {}})),
            "spec.roles.polcy: extra inputs are not permitted",
        ),
        (yaml.safe_dump(changed(RUN, model=None)), "spec.model: field required"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    """Of a file that cannot be rendered one line says where and what was expected."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        render_file(path, "default")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_survive_yaml() -> None:
    """A small float is written so that YAML 1.1 and 1.2 both read a number, not a text."""
    numbers = {"learningRate": 1e-5, "eps": 1e-8, "whole": 2.0}
    text = to_yaml([numbers])
    assert loaded(text) == [numbers]
    assert "1.0e-05" in text
