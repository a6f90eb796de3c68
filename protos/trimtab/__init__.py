"""Trimtab's contract and thin typed clients: `from trimtab import RewardClient`.

Clients are imported when they are first asked for, so that using the messages alone stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.clients.batching import AsyncBatchingRewardClient, BatchingRewardClient
    from trimtab.clients.errors import TrimtabClientError
    from trimtab.clients.learner import AsyncLearnerClient, LearnerClient
    from trimtab.clients.policy import AsyncPolicyClient, PolicyClient
    from trimtab.clients.preference import AsyncPreferenceClient, PreferenceClient
    from trimtab.clients.reference import AsyncReferenceClient, ReferenceClient
    from trimtab.clients.reward import AsyncRewardClient, RewardClient

_HOME = {
    "AsyncBatchingRewardClient": "batching",
    "BatchingRewardClient": "batching",
    "TrimtabClientError": "errors",
    "AsyncLearnerClient": "learner",
    "LearnerClient": "learner",
    "AsyncPolicyClient": "policy",
    "PolicyClient": "policy",
    "AsyncPreferenceClient": "preference",
    "PreferenceClient": "preference",
    "AsyncReferenceClient": "reference",
    "ReferenceClient": "reference",
    "AsyncRewardClient": "reward",
    "RewardClient": "reward",
}

__all__ = [
    "AsyncBatchingRewardClient",
    "AsyncLearnerClient",
    "AsyncPolicyClient",
    "AsyncPreferenceClient",
    "AsyncReferenceClient",
    "AsyncRewardClient",
    "BatchingRewardClient",
    "LearnerClient",
    "PolicyClient",
    "PreferenceClient",
    "ReferenceClient",
    "RewardClient",
    "TrimtabClientError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"trimtab.clients.{_HOME[name]}"), name)
