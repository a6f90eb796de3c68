"""From a definition to a RewardSource. Heavy imports only for what is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from services.common.rules import make_rule
from services.reward.batching import Limits
from services.reward.config import RewardConfig, SourceSpec
from services.reward.observing import SILENT, Observer
from services.reward.rewards.base import RewardSource
from services.reward.rewards.rule import RuleReward
from services.reward.rewards.turns import Turns


class SourceOpener:
    """Opens sources with this configuration's settings. Tokenising of all models shares a few threads, in turns."""

    def __init__(self, config: RewardConfig, observer: Observer = SILENT) -> None:
        self._config = config
        self._observer = observer
        self._tokenisers = Turns(ThreadPoolExecutor(max_workers=2, thread_name_prefix="reward-tokenise"))

    def __call__(self, definition: SourceSpec, name: str) -> RewardSource:
        """The source, ready to score. Takes seconds for a model; call it off the event loop.

        Raises NotFound or InvalidInput for what is not there or cannot be read.
        """
        if definition.rule:
            return RuleReward(make_rule(definition.rule), max_queued_rows=self._config.max_queued_rows)
        if definition.function is not None:
            from services.reward.rewards.function import FunctionReward

            return FunctionReward(
                definition.function, name=name, max_queued_rows=self._config.max_queued_rows
            )
        if definition.composite is not None:
            from services.reward.rewards.composite import CompositeReward

            return CompositeReward(definition.composite, {})
        if definition.running is not None:
            from services.reward.rewards.running import RunningReward

            return RunningReward(definition.running)
        if definition.remote is not None:
            from services.reward.rewards.remote import RemoteReward

            return RemoteReward(definition.remote, max_queued_rows=self._config.max_queued_rows)
        if definition.judge is not None:
            from services.reward.rewards.judge import JudgeReward

            return JudgeReward(definition.judge, max_queued_rows=self._config.max_queued_rows)
        return self._model(definition, name)

    def _model(self, definition: SourceSpec, name: str) -> RewardSource:
        from services.models.classifiers import Readout
        from services.models.compute import compute_thread, done_once
        from services.models.loading import torch_device
        from services.reward.rewards.model import ModelReward, open_model

        config = self._config
        device = definition.device or config.device
        open_scorer = partial(
            open_model,
            definition.path,
            dtype=definition.dtype or config.dtype,
            device=device,
            threads=config.threads,
            name=name,
            readout=Readout(
                label=definition.label,
                step_separator=definition.step_separator,
                step_reduction=definition.step_reduction,
                max_tokens=definition.max_tokens,
            ),
        )
        scorer = done_once(open_scorer)
        limits = Limits(
            batch_tokens=config.token_budget,
            queued_rows=config.max_queued_rows,
            queued_tokens=config.max_queued_tokens,
        )
        source = ModelReward(
            scorer,
            Path(definition.path).expanduser(),
            limits=limits,
            tokenisers=self._tokenisers,
            computes=compute_thread(torch_device(device)),
            observer=self._observer,
        )
        try:
            source.warm_up()
        except BaseException:
            source.close()
            raise
        return source
