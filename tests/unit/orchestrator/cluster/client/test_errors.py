"""What the API server answers, as errors that say what to do."""

from __future__ import annotations

import json

import pytest

from orchestrator.cluster.client.errors import error_of


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (json.dumps({"kind": "Status", "message": 'pods "a" not found'}), 'pods "a" not found'),
        ("404 page not found\n", "the API server does not know this kind"),
    ],
)
def test_what_is_not_there_is_told_from_what_nobody_serves(body: str, told: str) -> None:
    """An object that is missing, and a kind whose definition is not installed."""
    error = error_of(404, "Not Found", body, "apply Workload helpful in rlhf")
    assert error.status == "NOT_FOUND"
    assert str(error).startswith(f"apply Workload helpful in rlhf: {told}")
