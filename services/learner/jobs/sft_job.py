"""The sft job around its training: demonstrations in, a plain Hugging Face folder and a report out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from services.common.errors import ConfigError, InvalidInput, NotFound
from services.common.folders import written
from services.common.spec.service import ModelSpec
from services.learner.checkpoints import storage_errors
from services.learner.jobs.demonstrations import Demonstration, read_demonstrations
from services.learner.jobs.distillation import under_context
from services.learner.jobs.folder import REPORT_FILE, prepared, write_report
from services.learner.jobs.lora import merged, with_adapters
from services.learner.jobs.sft import SftReport, SftTraining, Trainee, train
from services.models.loading import load_language_model
from services.models.reward_model import SETTINGS_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class SftJob:
    """Files and model. lora_rank: 0 trains the model itself. context: a file whose text the answers are made under."""

    data: Path
    model: str
    out: Path
    report: Path | None = None
    context: Path | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_targets: tuple[str, ...] = ()
    """Names of layers; none: every linear one but the head."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    packing: bool = True


def run_job(job: SftJob, options: SftTraining) -> None:
    """Read demonstrations (or make them under the context), train, write the folder and the report, print figures."""
    out = prepared(job.out, REPORT_FILE, job.report, foreign=SETTINGS_FILE)
    demonstrations = read_demonstrations(job.data)
    context = _context(job.context)
    loaded = load_language_model(ModelSpec(path=job.model, dtype=job.dtype, threads=job.threads))
    _check(job, options, loaded.facts.architecture)
    limit = loaded.facts.context_length or options.max_tokens
    options = replace(options, max_tokens=min(options.max_tokens, limit))
    if context:
        demonstrations = under_context(
            loaded.model,
            loaded.tokenizer,
            demonstrations,
            context,
            seed=options.seed,
            max_new_tokens=job.max_new_tokens,
            temperature=job.temperature,
            heard=lambda done, total: print(f"{done} of {total} answered", file=sys.stderr, flush=True),
        )
    adapted = None
    if job.lora_rank:
        adapted = with_adapters(
            loaded.model,
            rank=job.lora_rank,
            alpha=job.lora_alpha,
            targets=job.lora_targets,
            seed=options.seed,
        )
    report = train(Trainee(loaded.model, packed=job.packing), loaded.tokenizer, demonstrations, options, _say)
    model = loaded.model if adapted is None else merged(adapted)
    told = asdict(report) | {"model": job.model}
    with storage_errors(f"the trained model in {job.out}"), written(out, replace=True) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        if context:
            _keep(demonstrations, folder / "distilled.jsonl")
        write_report(told, folder / REPORT_FILE)
    _tell(report)
    write_report(told, job.report)


def _check(job: SftJob, options: SftTraining, architecture: str) -> None:
    """Raises ConfigError for options that do not go together, or not with such a model."""
    if job.lora_targets and not job.lora_rank:
        raise ConfigError("--lora-target is for training with --lora-rank")
    if job.lora_rank and options.frozen_layers:
        raise ConfigError("--frozen-layers is for training without --lora-rank, which trains no layer itself")
    if architecture != "causal" and (job.lora_rank or job.context):
        option = "--lora-rank" if job.lora_rank else "--context"
        raise ConfigError(f"{option} is for causal models; {job.model} is an encoder-decoder")


def _context(file: Path | None) -> str:
    if file is None:
        return ""
    if not file.is_file():
        raise NotFound(f"{file}: no such file")
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise InvalidInput(f"{file}: the context is empty")
    return text


def _keep(made: Sequence[Demonstration], file: Path) -> None:
    """The answers that were made under a context, as demonstrations."""
    rows = [
        {
            "prompt": [{"role": role, "content": content} for role, content in one.messages],
            "completion": [{"role": "assistant", "content": one.answer}],
        }
        for one in made
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")


def _tell(report: SftReport) -> None:
    told = [
        f"held-out answers    {report.held_out_rows} (trained on {report.train_rows}, split by prompt)",
        f"loss per token      {report.loss_before:.4f} before, {report.loss_after:.4f} after, nats",
        f"perplexity          {report.perplexity_after:.2f}",
        f"cut to fit          {report.cut_rows} rows",
    ]
    print("\n".join(told), file=sys.stderr, flush=True)


def _say(done: int, total: int, loss: float) -> None:
    print(json.dumps({"event": "progress", "step": done, "steps": total, "loss": round(loss, 4)}), flush=True)
