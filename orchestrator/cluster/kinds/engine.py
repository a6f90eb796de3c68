"""What a TrainingRun may say of its engine, as the API server checks it. The same that services/common/spec holds."""

from __future__ import annotations

from typing import Any

from orchestrator.cluster.kinds.base import rules
from services.common.spec.engine import TAKES_WEIGHTS

_COMMAND = "has(self.command) && self.command.size() > 0"
_URL = "has(self.url) && self.url != ''"
_FOLDER = "has(self.weightsFolder) && self.weightsFolder != ''"
ENGINE_RULES: dict[str, Any] = rules(
    (
        f"self.kind in {list(TAKES_WEIGHTS)}",
        "engine: tgi and openai take no new weights, as a run's policy must: they are for a policy service alone",
    ),
    (
        f"self.kind != 'transformers' || !({_URL}) && !({_COMMAND}) && !({_FOLDER})",
        "engine: transformers runs in process: it takes neither url nor command nor weightsFolder",
    ),
    (
        f"self.kind != 'vllm' || ({_URL}) != ({_COMMAND})",
        "engine: vllm takes either url or command",
    ),
    (
        f"self.kind != 'vllm' || ({_FOLDER})",
        "engine: vllm takes a run's new weights from a folder that it sees too: give weightsFolder",
    ),
)
ENGINE_TOGETHER: tuple[tuple[str, str], ...] = (
    (
        "self.engine.kind == 'transformers' || self.algorithm.kind != 'nlpo'",
        "engine: nlpo bounds what is drawn, which only transformers can",
    ),
    (
        "!has(self.engineKeySecret) || has(self.engine.url) && self.engine.url != ''",
        "engineKeySecret is for an engine at a url",
    ),
    (
        (
            "!has(self.engine.url) || self.engine.url == '' || "
            "(self.roles.policy.replicas <= 1 && self.roles.policy.scaling.mode == 'Static')"
        ),
        (
            "engine.url is one server, which takes weights from one replica: roles.policy.replicas is 1 and its "
            "scaling Static, or give command, which starts one beside each replica"
        ),
    ),
)
