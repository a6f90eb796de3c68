"""ModelFacts and versions to and from the contract's messages."""

from __future__ import annotations

from services.models.facts import ModelFacts
from trimtab.common.v1 import common_pb2 as common

_ARCHITECTURE = {
    "causal": common.ARCHITECTURE_CAUSAL,
    "encoder_decoder": common.ARCHITECTURE_ENCODER_DECODER,
    "encoder": common.ARCHITECTURE_ENCODER,
}
_DTYPE = {
    "float32": common.DTYPE_FLOAT32,
    "bfloat16": common.DTYPE_BFLOAT16,
    "float16": common.DTYPE_FLOAT16,
}


def model_info(facts: ModelFacts, version: common.WeightsVersion | None = None) -> common.ModelInfo:
    """The ModelInfo message for what is loaded now."""
    return common.ModelInfo(
        name=facts.name,
        tokenizer_fingerprint=facts.tokenizer_fingerprint,
        chat_template_digest=facts.chat_template_digest,
        model_digest=facts.model_digest,
        architecture=_ARCHITECTURE[facts.architecture],
        weights_version=version,
        context_length=facts.context_length,
        vocabulary_size=facts.vocabulary_size,
        dtype=_DTYPE.get(facts.dtype, common.DTYPE_UNSPECIFIED),
    )
