"""What bounds or guides the drawing of tokens beside the sampling itself: value heads (ILQL), action masks (NLPO)."""

from __future__ import annotations

from pydantic import Field, model_validator

from services.common.spec.base import Spec


class ValuesSpec(Spec):
    """Decoding with ILQL's heads: log pi + beta (min target Q - V), arXiv 2206.11871."""

    beta: float = Field(1.0, ge=0, description="Weight of the advantage; 0: the policy as it is.")
    top_k: int = Field(20, ge=0, description="Of the sums, the best so many may be drawn; 0 is off.")


class MaskSpec(Spec):
    """Drawing within the nucleus of a mask model, an older version of the policy, arXiv 2210.01241."""

    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus of the mask model.")
    min_tokens: int = Field(100, ge=1, description="Tokens that stay, however small the nucleus.")


class DecodingSpec(Spec):
    """[decoding]: at most one of them. Empty: the policy's own distribution."""

    values: ValuesSpec | None = None
    mask: MaskSpec | None = None

    @model_validator(mode="after")
    def _one(self) -> DecodingSpec:
        if self.values is not None and self.mask is not None:
            raise ValueError("expected one of values and mask")
        return self

    @property
    def table(self) -> str:
        """What is set: decoding.values, decoding.mask, or nothing."""
        return next((f"decoding.{name}" for name in ("values", "mask") if getattr(self, name)), "")
