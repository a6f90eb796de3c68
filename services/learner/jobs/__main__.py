"""`python -m services.learner.jobs reward-model …`: parses, wires, runs one job to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def _jobs() -> None:
    """Jobs of the learner: processes that train once and end."""
    from services.common.allocator import keep_freed_memory

    keep_freed_memory()


@app.command("reward-model")
def reward_model(
    pairs: Annotated[Path, typer.Option(help="Comparisons, JSONL in TRL's schema.")],
    model: Annotated[str, typer.Option(help="Where to begin: folder, package:<name>, .gguf or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the reward model.")],
    report: Annotated[Path | None, typer.Option(help="Where the report goes, as JSON.")] = None,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_pairs: Annotated[
        int, typer.Option(min=1, help="At least; all comparisons of a prompt stay together.")
    ] = 16,
    frozen_layers: Annotated[int, typer.Option(min=0)] = 0,
    train_embeddings: Annotated[bool, typer.Option(help="Train the embeddings too.")] = False,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="In training only.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=8)] = 512,
    held_out_share: Annotated[float, typer.Option(min=0.01, max=0.9)] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    threads: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a reward model on comparisons; write it as safetensors, and a report."""
    from services.common.errors import TrimtabError, UserError

    try:
        from services.learner.jobs.reward_model import RewardTraining, run_job

        options = RewardTraining(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_pairs=batch_pairs,
            frozen_layers=frozen_layers,
            train_embeddings=train_embeddings,
            dropout=dropout,
            held_out_share=held_out_share,
            seed=seed,
        )
        run_job(pairs, model, out, report, options, max_tokens=max_tokens, threads=threads)
    except TrimtabError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    app()
