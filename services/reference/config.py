"""The reference service's configuration: what all services have, a model, and how much it takes at once."""

from __future__ import annotations

from pydantic import Field

from services.common.spec.service import ModelSpec, ServiceSpec


class ReferenceConfig(ServiceSpec):
    """[server] [queue] [model] [log] and the size of a forward pass."""

    model: ModelSpec
    token_budget: int = Field(8192, ge=16, description="Padded tokens in one forward pass.")
    max_sequences: int = Field(4096, ge=1, description="Sequences in one call.")
