"""An offline run's model, trainer and batches, from its spec."""

from __future__ import annotations

from typing import cast

from services.common.spec.library import DpoSpec
from services.common.spec.run import RunSpec
from services.learner.offline.batches import OfflineBatches
from services.learner.offline.dpo import DpoTrainer
from services.learner.offline.ilql import IlqlTrainer
from services.learner.offline.rows import Answer, load_rows
from services.learner.offline.trainer import OfflineTrainer
from services.models.loading import LoadedModel, load_language_model


def offline_learner(spec: RunSpec) -> tuple[LoadedModel, OfflineTrainer, OfflineBatches]:
    """Everything loaded. Raises NotFound and InvalidInput for model and file."""
    loaded = load_language_model(spec.model)
    rows = load_rows(spec, loaded.tokenizer, context_length=loaded.facts.context_length)
    trainer: OfflineTrainer
    if isinstance(spec.algorithm, DpoSpec):
        trainer = DpoTrainer(loaded, spec)
    else:
        trainer = IlqlTrainer(loaded, spec, cast("list[Answer]", rows))
    return loaded, trainer, OfflineBatches(spec, rows)
