"""ModelFacts, versions and manifests to and from the contract's messages."""

from __future__ import annotations

import math
from itertools import groupby

from services.common.errors import InvalidInput
from services.models.facts import ModelFacts
from services.models.manifest import Manifest, Part, TensorEntry, Version, component_of
from trimtab.common.v1 import common_pb2 as common
from trimtab.weights.v1 import weights_pb2 as weights

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
# What no tensor exceeds: a manifest is held against the model before a byte is fetched, but it is summed up before.
_DIGEST_BYTES, _MOST_DIMENSIONS, _MOST_BYTES = 32, 64, 2**44
_DTYPE_NAME = {number: name for name, number in _DTYPE.items()}


def model_info(facts: ModelFacts, version: Version | None = None) -> common.ModelInfo:
    """The ModelInfo message for what is loaded now."""
    return common.ModelInfo(
        name=facts.name,
        tokenizer_fingerprint=facts.tokenizer_fingerprint,
        chat_template_digest=facts.chat_template_digest,
        model_digest=facts.model_digest,
        architecture=_ARCHITECTURE[facts.architecture],
        weights_version=None if version is None else version_message(version),
        context_length=facts.context_length,
        vocabulary_size=facts.vocabulary_size,
        dtype=_DTYPE.get(facts.dtype, common.DTYPE_UNSPECIFIED),
    )


def version_message(version: Version) -> common.WeightsVersion:
    """A version on the wire."""
    return common.WeightsVersion(epoch=version.epoch, step=version.step, digest=version.digest)


def version_of(message: common.WeightsVersion) -> Version:
    """A version from the wire."""
    return Version(message.epoch, message.step, message.digest)


def manifest_message(manifest: Manifest) -> weights.WeightManifest:
    """A manifest on the wire: the policy, and what is served beside it."""
    components = [
        weights.WeightComponent(name=name, tensors=[_entry_message(entry) for entry in entries])
        for name, entries in groupby(manifest.tensors, key=lambda entry: component_of(entry.name))
    ]
    return weights.WeightManifest(
        version=version_message(manifest.version),
        components=components,
        total_bytes=sum(entry.size_bytes for entry in manifest.tensors),
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        parts=[weights.WeightPart(address=part.address, tensors=part.tensors) for part in manifest.parts],
    )


def _entry_message(entry: TensorEntry) -> weights.TensorEntry:
    return weights.TensorEntry(
        name=entry.name, dtype=_DTYPE[entry.dtype], shape=entry.shape, digest=entry.digest
    )


def manifest_of(message: weights.WeightManifest) -> Manifest:
    """A manifest from the wire. Raises InvalidInput for a dtype, shape, size, digest or name that no weights have."""
    entries = [_entry_of(entry) for component in message.components for entry in component.tensors]
    if len({entry.name for entry in entries}) != len(entries):
        raise InvalidInput("the manifest names a tensor twice")
    parts = tuple(Part(part.address, part.tensors) for part in message.parts)
    if parts and sum(part.tensors for part in parts) != len(entries):
        raise InvalidInput("the manifest's parts are not its tensors")
    return Manifest(version_of(message.version), tuple(entries), message.tokenizer_fingerprint, parts)


def _entry_of(message: weights.TensorEntry) -> TensorEntry:
    told = f"{' '.join(message.name.split())[:200]}: the manifest names"
    if message.dtype not in _DTYPE_NAME:
        raise InvalidInput(f"{told} an unknown dtype {message.dtype}")
    if len(message.digest) != _DIGEST_BYTES:
        raise InvalidInput(f"{told} a digest of {len(message.digest)} bytes")
    entry = TensorEntry(message.name, _DTYPE_NAME[message.dtype], tuple(message.shape), message.digest)
    # An empty tensor has no bytes, and yet its other dimensions may be more than torch can step over.
    empty_too_long = 0 in entry.shape and math.prod(size for size in entry.shape if size) > _MOST_BYTES
    if len(entry.shape) > _MOST_DIMENSIONS or min(entry.shape, default=0) < 0 or empty_too_long:
        raise InvalidInput(f"{told} an impossible shape of {len(entry.shape)} dimensions")
    if entry.size_bytes > _MOST_BYTES:
        raise InvalidInput(f"{told} more than {_MOST_BYTES >> 40} TiB")
    return entry
