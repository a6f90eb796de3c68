"""`python -m services.learner.jobs reward-model …`: parses, wires, runs one job to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Pairs = Annotated[
    str, typer.Option(help="Comparisons: a file or datasets:NAME, in any known format.", show_default=False)
]
Model = Annotated[
    str, typer.Option(help="Where to begin: folder, package:<name>, .gguf or hub id.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0)]
Threads = Annotated[int, typer.Option(min=0, help="0: all cores.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16, of the passes; masters are float32.")]
WarmupShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Of all steps; then linearly to 0.")]
Checkpointing = Annotated[bool, typer.Option(help="Less memory, about a third more time.")]


@app.callback()
def _jobs() -> None:
    """Jobs of the learner: processes that train once and end."""
    from services.common.allocator import keep_freed_memory

    keep_freed_memory()


@contextmanager
def _one_line() -> Iterator[None]:
    """An error, the system's too, as one line on stderr; exit status 2 for the user's mistakes, else 1."""
    from services.common.errors import TrimtabError, UserError

    try:
        yield
    except (TrimtabError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


@app.command("reward-model")
def reward_model(
    pairs: Pairs,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the reward model.", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option(help="A copy of the folder's training.json.", show_default=False),
    ] = None,
    pretraining_pairs: Annotated[
        str, typer.Option(help="A larger set to train on first (PMP).", show_default=False)
    ] = "",
    pretraining_epochs: Annotated[int, typer.Option(min=1)] = 1,
    pretraining_learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-4,
    pretraining_objective: Annotated[str, typer.Option(help="binary or ranked.")] = "binary",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Answers that score mean 0, deviation 1: JSONL, prompt and completion.",
            show_default="the first 256 answers trained on",
        ),
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Count malformed rows and go on.")] = False,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_pairs: Annotated[
        int, typer.Option(min=1, help="At least; all comparisons of a prompt stay together.")
    ] = 16,
    frozen_layers: Annotated[int, typer.Option(min=0)] = 0,
    train_embeddings: Annotated[bool, typer.Option(help="Train the embeddings too.")] = False,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="In training only.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = 0.01,
    warmup_share: WarmupShare = 0.1,
    normalise_before: Annotated[bool, typer.Option(help="Begin with scores of mean 0, deviation 1.")] = True,
    gradient_checkpointing: Checkpointing = False,
    max_tokens: Annotated[int, typer.Option(min=8)] = 512,
    held_out_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Of prompts.")] = 0.1,
    dtype: Dtype = "auto",
    seed: Seed = 1,
    threads: Threads = 0,
) -> None:
    """Train a reward model on comparisons: a folder for the reward service, with its card and a report."""
    from services.common.errors import UserError

    with _one_line():
        from services.learner.jobs.reward_job import RewardJob, run_job
        from services.learner.jobs.reward_model import RewardTraining

        if pretraining_objective not in ("binary", "ranked"):
            raise UserError(f"--pretraining-objective {pretraining_objective}: expected binary or ranked")
        options = RewardTraining(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_pairs=batch_pairs,
            frozen_layers=frozen_layers,
            train_embeddings=train_embeddings,
            dropout=dropout,
            weight_decay=weight_decay,
            warmup_share=warmup_share,
            normalise_before=normalise_before,
            gradient_checkpointing=gradient_checkpointing,
            pretraining_epochs=pretraining_epochs,
            pretraining_learning_rate=pretraining_learning_rate,
            pretraining_objective="binary" if pretraining_objective == "binary" else "ranked",
            held_out_share=held_out_share,
            seed=seed,
        )
        job = RewardJob(
            pairs=pairs,
            model=model,
            out=out,
            report=report,
            pretraining=pretraining_pairs,
            reference=reference,
            skip_bad_rows=skip_bad_rows,
            max_tokens=max_tokens,
            threads=threads,
            dtype=_dtype(dtype),
        )
        run_job(job, options)


@app.command()
def sft(
    data: Annotated[
        Path,
        typer.Option(help="Demonstrations, JSONL: prompt and completion, or messages.", show_default=False),
    ],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    report: Annotated[
        Path | None,
        typer.Option(help="A copy of the folder's training.json.", show_default=False),
    ] = None,
    context: Annotated[
        Path | None,
        typer.Option(
            help="Distil this text: the model answers the prompts under it and learns to do so without.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of answers made under --context.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the same; 0 is greedy.")] = 1.0,
    lora_rank: Annotated[int, typer.Option(min=0, help="Rank of LoRA's adapters; 0 trains the model.")] = 0,
    lora_alpha: Annotated[int, typer.Option(min=1)] = 32,
    lora_target: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer by name, such as q_proj; again for more.", show_default="every linear one"
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-5,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_rows: Annotated[int, typer.Option(min=1)] = 16,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = 0.0,
    warmup_share: WarmupShare = 0.1,
    frozen_layers: Annotated[int, typer.Option(min=0)] = 0,
    train_embeddings: bool = True,
    packing: Annotated[bool, typer.Option(help="Rows side by side without padding.")] = True,
    gradient_checkpointing: Checkpointing = False,
    max_tokens: Annotated[int, typer.Option(min=8)] = 1024,
    held_out_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Of prompts.")] = 0.05,
    dtype: Dtype = "auto",
    seed: Seed = 1,
    threads: Threads = 0,
) -> None:
    """Fine-tune a model on given answers: a plain Hugging Face folder, and a report."""
    with _one_line():
        from services.learner.jobs.sft import SftTraining
        from services.learner.jobs.sft_job import SftJob, run_job

        options = SftTraining(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_rows=batch_rows,
            weight_decay=weight_decay,
            warmup_share=warmup_share,
            held_out_share=held_out_share,
            max_tokens=max_tokens,
            frozen_layers=frozen_layers,
            train_embeddings=train_embeddings,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
        job = SftJob(
            data=data,
            model=model,
            out=out,
            report=report,
            context=context,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=tuple(lora_target or ()),
            dtype=_dtype(dtype),
            threads=threads,
            packing=packing,
        )
        run_job(job, options)


@app.command()
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(
            help="Folder, .gguf, package:NAME, a run's folder or checkpoint, or host:port of a policy service; "
            "again for more. label=MODEL names it.",
            show_default=False,
        ),
    ],
    task: Annotated[str, typer.Option(help="What is asked: see trimtab tasks.", show_default=False)],
    metric: Annotated[
        list[str] | None, typer.Option(help="Again for more.", show_default="the task's reward and metrics")
    ] = None,
    data: Annotated[
        str, typer.Option(help="A file or datasets:NAME?split=….", show_default="the task's own")
    ] = "",
    split: Annotated[str, typer.Option(help="Of the task's own prompts: test or train.")] = "test",
    prompts: Annotated[int, typer.Option("-n", "--prompts", min=1, help="At most so many.")] = 100,
    completions: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 1,
    prompt_characters: Annotated[
        int, typer.Option(min=0, help="Longer prompts are left out; 0: none is.")
    ] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, show_default="the task's")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    judge: Annotated[
        str, typer.Option(help="A model that perplexity is measured under.", show_default=False)
    ] = "",
    seed: Seed = 1,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    save: Annotated[Path | None, typer.Option(help="JSON lines of all answers.", show_default=False)] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Measure models on a task: figures with 95 % intervals, differences on the same prompts."""
    import json

    from services.common.errors import UserError

    with _one_line():
        from services.common.tasks.registry import find_task

        asked_of = find_task(task)  # before the seconds that torch takes
        from services.learner.jobs import task_evaluation as course
        from services.learner.jobs.answerers import Sampling, named
        from services.learner.jobs.evaluation_table import print_table

        if split not in ("test", "train"):
            raise UserError(f"--split {split}: expected test or train")
        asked = course.TaskEvaluation(
            task=asked_of,
            models=named(model),
            metrics=course.metric_specs(asked_of, metric or [], judge=bool(judge)),
            sampling=Sampling(
                max_new_tokens=max_new_tokens or asked_of.max_new_tokens,
                temperature=temperature,
                completions=completions,
                seed=seed,
            ),
            prompts=prompts,
            data=data,
            split="test" if split == "test" else "train",
            prompt_characters=prompt_characters,
            judge=judge,
            dtype=_dtype(dtype),
            threads=threads,
        )
        if save is not None:  # hours before there is anything to save
            if save.is_dir():
                raise UserError(f"--save {save}: a folder has that name")
            save.parent.mkdir(parents=True, exist_ok=True)
        columns = course.evaluate(asked, lambda line: print(line, file=sys.stderr))
        if json_output:
            print(json.dumps(course.as_json(asked, columns)))
        else:
            print_table(asked, columns)
        if save is not None:
            course.save_answers(save, columns)


def _dtype(name: str) -> Literal["auto", "float32", "bfloat16"]:
    from services.common.errors import UserError

    known: dict[str, Literal["auto", "float32", "bfloat16"]] = {
        "auto": "auto",
        "float32": "float32",
        "bfloat16": "bfloat16",
    }
    if name not in known:
        raise UserError(f"--dtype {name}: expected {', '.join(known)}")
    return known[name]


if __name__ == "__main__":
    app(prog_name=os.environ.get("TRIMTAB_PROGRAM"))
