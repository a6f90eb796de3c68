"""`trimtab crds` and `trimtab render`: what Kubernetes would be given, without a cluster. Flags only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path,
    typer.Option(
        "-f", "--file", metavar="FILE", help="TrainingRuns and RewardModels, YAML.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("crds")(crds)
    app.command("render")(render)


def crds(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="One file each there.", show_default="stdout"),
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions, or write them as the chart trimtab-crds has them."""
    from orchestrator.cluster.documents import crd_files

    files = crd_files()
    if out is None:
        typer.echo("---\n".join(files.values()), nl=False)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
        typer.echo(out / name)


def render(
    file: File,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="Where an object names none.")
    ] = "default",
    attempt: Annotated[int, typer.Option(min=1, help="Of the learner's Job.")] = 1,
    update: Annotated[
        bool, typer.Option("--update", help="As applied to what is there already: without replicas.")
    ] = False,
) -> None:
    """Print the manifests that the operator would apply for each object of the file."""
    from orchestrator.cluster.documents import render_file

    typer.echo(render_file(file, namespace, attempt=attempt, update=update), nl=False)
