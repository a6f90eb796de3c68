"""Hypothesis strategies for the bytes of a ScoreRequest: sound ones, odd ones, and none at all.

Numbers of fields are those of protos/trimtab/reward/v1/reward.proto and common.proto.
"""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from tests.fuzz.service import MODELS
from tests.fuzz.wire import BYTES, FIXED32, FIXED64, VARINT, block, groups, integer, nested, tag, varint

_MODELS = tuple(name.encode() for name in MODELS)
# The tiny model's vocabulary has 263 ids.
_IDS = st.one_of(
    st.integers(0, 262), st.sampled_from([-1, -(2**31), 263, 2**31 - 1, 7]), st.integers(-(2**31), 2**31 - 1)
)
_WIDE = st.one_of(
    st.integers(0, 12), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-1, 2**31, 2**62, 2**63 - 1])
)

_VALID = [
    b"",
    b"\x00",
    "\u202e\u0301\u200d\ufeff".encode(),
    b"<|end|><|assistant|><|pad|>" * 5,
    b"[CLS][SEP]",
    b"x" * 5_000,
    "n\u00e9".encode() * 3_000,
    b"\n" * 2_000,
    b"((((((((((((((((((((a" * 40,
]
_INVALID = [
    b"\xff\xfe",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xf4\x90\x80\x80",  # past the last code point
    b"\xc0\x80",  # an over-long nul
]
texts = st.one_of(
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "ignore")), st.sampled_from(_VALID)
)
blobs = st.one_of(texts, st.sampled_from(_INVALID), st.binary(max_size=60))


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A Tensor: often of ids, sometimes with a shape that its data do not have, NaN, or no sense at all."""
    kind = draw(st.sampled_from(["ids", "ids", "ids", "shape", "nan", "any"]))
    if kind in ("ids", "shape"):
        ids = draw(st.lists(_IDS, max_size=30))
        data = struct.pack(f"<{len(ids)}i", *ids)
        shape = [len(ids)] if kind == "ids" else draw(st.lists(_WIDE, max_size=5))
        dtype = 4 if kind == "ids" else draw(st.integers(0, 9))
    elif kind == "nan":
        data, shape, dtype = struct.pack("<4f", float("nan"), float("inf"), -0.0, 1e38), [4], 1
    else:
        data, shape, dtype = draw(st.binary(max_size=40)), draw(st.lists(_WIDE, max_size=8)), draw(_WIDE)
    packed = b"".join(varint(size) for size in shape)
    written = block(2, packed) if draw(st.booleans()) else b"".join(integer(2, size) for size in shape)
    return integer(1, dtype) + written + block(3, data)


def ids(values: list[int]) -> bytes:
    """A sound Tensor of ids."""
    return integer(1, 4) + block(2, varint(len(values))) + block(3, struct.pack(f"<{len(values)}i", *values))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A ChatMessage."""
    role = draw(st.one_of(st.sampled_from([b"user", b"assistant", b"system", b"tool"]), blobs))
    return block(1, role) + block(2, draw(blobs))


@st.composite
def sound_inputs(draw: st.DrawFn) -> bytes:
    """A ScoreInput as a client would write it, though its texts and ids may be odd."""
    kind = draw(st.sampled_from(["text", "chat", "ids"]))
    if kind == "text":
        return block(1, draw(texts)) + block(2, draw(texts))
    if kind == "chat":
        before = draw(
            st.lists(st.tuples(st.sampled_from([b"user", b"assistant", b"system"]), texts), max_size=3)
        )
        turns = [*before, (b"assistant", draw(texts))]
        return b"".join(block(3, block(1, role) + block(2, content)) for role, content in turns)
    values = _IDS if draw(st.integers(0, 3)) == 0 else st.integers(0, 262)
    prompt, completion = draw(st.lists(values, max_size=200)), draw(st.lists(values, max_size=50))
    return block(4, ids(prompt)) + block(5, ids(completion))


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A ScoreInput of any fields in any number."""
    column = st.tuples(blobs, blobs).map(lambda pair: block(1, pair[0]) + block(2, pair[1]))
    field = st.one_of(
        blobs.map(lambda data: block(1, data)),
        blobs.map(lambda data: block(2, data)),
        messages().map(lambda data: block(3, data)),
        tensors().map(lambda data: block(4, data)),
        tensors().map(lambda data: block(5, data)),
        column.map(lambda data: block(6, data)),
        noise(),
    )
    return b"".join(draw(st.lists(field, max_size=6)))


def noise() -> st.SearchStrategy[bytes]:
    """Fields that nobody asked for: unknown numbers, wrong wire types, deep nesting, groups, number 0."""
    number = st.one_of(st.integers(1, 8), st.sampled_from([0, 19_000, 2**29 - 1]))
    return st.one_of(
        st.builds(integer, number, _WIDE),
        st.builds(block, number, st.binary(max_size=30)),
        st.builds(lambda n: tag(n, FIXED32) + b"\0\0\xc0\x7f", number),
        st.builds(lambda n: tag(n, FIXED64) + b"\xff" * 8, number),
        st.builds(lambda n: tag(n, VARINT) + b"\xff" * 11, number),
        st.builds(lambda n: tag(n, BYTES) + varint(2**31), number),
        st.builds(nested, st.sampled_from([2, 3, 4, 6, 15]), st.sampled_from([1, 50, 99, 101, 2_000])),
        st.builds(groups, number, st.sampled_from([1, 50, 99, 101, 5_000]), closed=st.booleans()),
        st.builds(tag, number, st.integers(0, 7)),
    )


@st.composite
def requests(draw: st.DrawFn, fingerprint: bytes) -> bytes:
    """A ScoreRequest as bytes: half of them sound, some odd in every field, cut or flipped, some random altogether."""
    how = draw(st.sampled_from(["sound"] * 10 + ["odd"] * 6 + ["cut", "flipped", "random"]))
    if how == "random":
        return draw(st.binary(max_size=200))
    if how == "sound":
        rows = draw(st.lists(sound_inputs(), min_size=1, max_size=5))
        model = draw(st.sampled_from(_MODELS))
        return b"".join([block(1, model), *(block(2, row) for row in rows), block(3, fingerprint)])
    data = draw(_odd_requests(fingerprint))
    if how == "odd" or not data:
        return data
    place = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:place]
    return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]


@st.composite
def _odd_requests(draw: st.DrawFn, fingerprint: bytes) -> bytes:
    names = st.sampled_from([b"", b"nobody", b"tiny\0", b"../tiny"])
    model = draw(st.one_of(st.sampled_from(_MODELS), st.sampled_from(_MODELS), names, blobs))
    rows = draw(st.lists(st.one_of(sound_inputs(), inputs()), max_size=5))
    parts = [block(1, model), *(block(2, row) for row in rows)]
    if draw(st.booleans()):
        parts.append(block(3, draw(st.one_of(st.just(fingerprint), st.just(fingerprint), blobs))))
    if draw(st.booleans()):
        parts.append(draw(noise()))
    return b"".join(draw(st.permutations(parts)))


# What gRPC itself lets through in a text header: printable ASCII.
_HEADER = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
metadata = st.lists(
    st.tuples(
        st.sampled_from(["traceparent", "tracestate", "x-request-id", "trimtab-run", "authorization"]),
        _HEADER,
    ),
    max_size=3,
)
