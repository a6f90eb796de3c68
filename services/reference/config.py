"""The reference service's configuration: what all services have, a model, and how much it takes at once."""

from __future__ import annotations

from pydantic import Field

from services.common.spec.service import ModelSpec, ServiceSpec


class ReferenceConfig(ServiceSpec):
    """[server] [queue] [model] [log] and the size of a forward pass."""

    model: ModelSpec
    token_budget: int = Field(
        0, ge=0, description="Padded tokens in one forward pass; 0: 2,048 on a processor, 16,384 on a GPU."
    )
    together_tokens: int = Field(
        32_768, ge=1, description="Tokens of waiting calls that are computed together, sorted by length."
    )
    max_sequences: int = Field(4096, ge=1, description="Sequences in one call.")
