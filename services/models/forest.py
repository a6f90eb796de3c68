"""Passes for training in which rows that share a beginning read it once. Knows no head and no loss.

    rows    [p p p a a]  [p p p b]      what both begin with stands once, then what follows in each
    tree    [p p p a a b]               positions 0 1 2 3 4 3; b sees p and itself, never a
    forest  [tree][tree][tree]          one sequence, no padding in any linear layer

Only attention is padded, tree by tree, and computed with plain products: torch's fused kernel for the processor takes
several times as long to go back through rows this short. It costs a square in the length of a tree, so a tree stays
within `limit` tokens; a row that is longer stands alone.

Sharing changes sums' order alone. Works for causal models that take their attention from transformers' registry;
`enable_forests` tries it against the padded pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
import torch

from services.models.packed import padded_states, probe_rows, same_states, windowed
from services.models.sharing import Copies, Tokens, beginning, tokens_of
from services.models.unrolled import Unrolled

ATTENTION = "trimtab_forest"
TREE_TOKENS = 512
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tree:
    """Rows by number, and of each how many of its first tokens are read in the tree's first row already."""

    rows: tuple[int, ...]
    shared: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Forest:
    """One micro-batch.

    ids, positions: [tokens] int64. ends: [rows] int64, where each row's last token stands. place: [trees, longest]
    int64 into tokens, filled up with 0. back: [tokens] int64, where each token stands first in `place`, flat. copies:
    the tokens that stand in several trees. hidden: [trees, 1, 1, longest, longest] bool, what a token (second last)
    does not see.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    place: torch.Tensor
    back: torch.Tensor
    copies: Copies | None
    hidden: torch.Tensor


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same; never a whole row, since a row's last token is its own."""
    return max(0, min(beginning(one, other), len(one) - 1, len(other) - 1))


def trees_of(rows: Sequence[Sequence[int]], limit: int = TREE_TOKENS) -> list[Tree]:
    """Cut rows that belong together (the answers to one prompt) into trees of at most `limit` tokens."""
    trees: list[Tree] = []
    numbers: list[int] = []
    shared: list[int] = []
    tokens = 0
    for number, row in enumerate(rows):
        same = shared_beginning(rows[numbers[0]], row) if numbers else 0
        if numbers and (not same or tokens + len(row) - same > limit):
            trees.append(Tree(tuple(numbers), tuple(shared), tokens))
            numbers, shared, tokens, same = [], [], 0, 0
        numbers.append(number)
        shared.append(same)
        tokens += len(row) - same
    if numbers:
        trees.append(Tree(tuple(numbers), tuple(shared), tokens))
    return trees


def plant(
    families: Iterable[Sequence[Sequence[int]]], limit: int = TREE_TOKENS, *, alike: bool = False
) -> Forest:
    """A forest of families of rows (token ids). `ends` is in the order of the rows.

    alike: what several trees begin with stands once, too. For layers of unrolled.py alone, which sum its gradients.
    """
    laid: list[_Laid] = []
    for family in families:
        laid += [_laid([family[number] for number in tree.rows], tree) for tree in trees_of(family, limit)]
    sizes = [len(one.ids) for one in laid]
    longest = max(sizes)
    firsts = [np.array(one.ids[: one.ends[0] + 1], np.int32) for one in laid] if alike else []
    tokens = tokens_of(sizes, longest, firsts)
    every = torch.arange(len(laid) * longest)
    place, back = (every if one is None else one for one in (tokens.source, tokens.places))
    ids = _side_by_side([one.ids for one in laid], longest)[back]
    positions = _side_by_side([one.positions for one in laid], longest)[back]
    ends = [number * longest + end for number, one in enumerate(laid) for end in one.ends]
    return Forest(
        ids,
        positions,
        place[torch.tensor(ends)],
        place.view(len(laid), longest),
        back,
        tokens.copies,
        _hidden(laid, longest),
    )


@dataclass(frozen=True, slots=True)
class _Laid:
    """A tree side by side: ids and positions [tokens]; where each row ends; branches: where each row's own tokens begin
    and end, and how many it shares."""

    ids: list[int]
    positions: list[int]
    ends: list[int]
    branches: list[tuple[int, int, int]]


def _laid(rows: Sequence[Sequence[int]], tree: Tree) -> _Laid:
    one = _Laid([], [], [], [])
    for row, same in zip(rows, tree.shared, strict=True):
        one.branches.append((len(one.ids), len(one.ids) + len(row) - same, same))
        one.ids.extend(row[same:])
        one.positions.extend(range(same, len(row)))
        one.ends.append(len(one.ids) - 1)
    return one


def _side_by_side(trees: Sequence[Sequence[int]], longest: int) -> torch.Tensor:
    """[trees * longest] int64, filled up with 0."""
    found = np.zeros((len(trees), longest), np.int64)
    for number, tree in enumerate(trees):
        found[number, : len(tree)] = tree
    return torch.from_numpy(found.reshape(-1))


def _hidden(laid: Sequence[_Laid], longest: int) -> torch.Tensor:
    hidden = np.ones((len(laid), longest, longest), dtype=bool)
    causal = np.triu(np.ones((longest, longest), dtype=bool), 1)
    for number, one in enumerate(laid):
        tokens = len(one.ids)
        hidden[number, :tokens, :tokens] = causal[:tokens, :tokens]
        for first, last, same in one.branches[1:]:
            hidden[number, first:last, same:first] = True
        hidden[number, tokens:, 0] = False  # a row of nothing but hidden places has no softmax
    return torch.from_numpy(hidden[:, None, None])


def forest_states(backbone: Any, forest: Forest, layers: Unrolled | None = None) -> torch.Tensor:
    """Last hidden states of each row's last token, [rows, width], differentiable. layers: see token_states."""
    return token_states(backbone, forest, layers)[forest.ends.to(backbone.device)]


def token_states(backbone: Any, forest: Forest, layers: Unrolled | None = None) -> torch.Tensor:
    """Last hidden states of all tokens as they stand in the forest, [tokens, width], differentiable.

    layers: the backbone's in a faster way, where there is one.
    """
    device = backbone.device
    if layers is not None:
        embedded = backbone.get_input_embeddings()(forest.ids.to(device))
        unseen, places = forest.hidden[:, 0, 0].to(device), forest.back.to(device)
        source = forest.place.view(-1).to(device)
        tokens = Tokens(forest.positions.to(device), places, source, forest.copies)
        return layers.states(embedded, tokens, unseen, len(unseen))
    if forest.copies is not None:
        raise ValueError("trees that begin alike need layers that know of it")
    states: torch.Tensor = backbone(
        input_ids=forest.ids[None].to(device),
        position_ids=forest.positions[None].to(device),
        forest=(forest.place.to(device), forest.back.to(device), forest.hidden.to(device)),
        use_cache=False,
    ).last_hidden_state[0]
    return states


def forest_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    forest: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' registry: query [1, heads, tokens, width] to [1, tokens, heads, width]."""
    if attention_mask is not None or forest is None:
        raise ValueError("a forest is needed, and no mask")
    if not getattr(module, "is_causal", True):
        raise ValueError("what comes after a shared beginning would be seen from within it")
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    states = (states[0].transpose(0, 1) for states in (query, key, value))
    return _Attention.apply(*states, *forest, scale)[None], None  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """softmax(scale * q k^T) v in each tree; query heads that share a key head are rows of one product.

    Keeps the probabilities, in the model's dtype: trees * heads * longest^2 of them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, place: Any, back: Any, hidden: Any, scale: float
    ) -> Any:
        shape = _Shape(place.shape[0], place.shape[1], key.shape[1], query.shape[1] // key.shape[1])
        q, k, v = (_padded(states, place, shape) for states in (query, key, value))
        q = q * scale
        scores = torch.bmm(q, k.transpose(1, 2)).float().view(shape.scores)
        scores.masked_fill_(hidden, float("-inf"))
        shares = torch.softmax(scores, dim=-1).to(query.dtype).view(*q.shape[:2], shape.longest)
        ctx.save_for_backward(q, k, v, shares, back)
        ctx.shape, ctx.scale = shape, scale
        return _flat(torch.bmm(shares, v), back, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, shares, back = ctx.saved_tensors
        shape = ctx.shape
        grad = grads[0].new_zeros((shape.trees * shape.longest, *grads[0].shape[1:]))
        grad = _heads_first(grad.index_copy_(0, back, grads[0].contiguous()), shape)
        grad_shares = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
        found = (
            torch.bmm(grad_scores, k).mul_(ctx.scale),
            torch.bmm(grad_scores.transpose(1, 2), q),
            torch.bmm(shares.transpose(1, 2), grad),
        )
        return *(_flat(each, back, shape) for each in found), None, None, None, None


@dataclass(frozen=True, slots=True)
class _Shape:
    trees: int
    longest: int
    key_heads: int
    sharing: int
    """Query heads for each key head."""

    @property
    def scores(self) -> tuple[int, ...]:
        return self.trees, self.key_heads, self.sharing, self.longest, self.longest


def _padded(states: torch.Tensor, place: torch.Tensor, shape: _Shape) -> torch.Tensor:
    """[tokens, heads, width] to [trees * key heads, heads of each * longest, width]."""
    return _heads_first(states.index_select(0, place.view(-1)), shape)


def _heads_first(states: torch.Tensor, shape: _Shape) -> torch.Tensor:
    """[trees * longest, heads, width] to [trees * key heads, heads of each * longest, width]."""
    heads, width = states.shape[1:]
    each = heads // shape.key_heads
    apart = states.view(shape.trees, shape.longest, shape.key_heads, each, width)
    return apart.permute(0, 2, 3, 1, 4).reshape(shape.trees * shape.key_heads, each * shape.longest, width)


def _flat(states: torch.Tensor, back: torch.Tensor, shape: _Shape) -> torch.Tensor:
    """The way back: [trees * key heads, heads of each * longest, width] to [tokens, heads, width]."""
    each, width = states.shape[1] // shape.longest, states.shape[2]
    apart = states.view(shape.trees, shape.key_heads, each, shape.longest, width).permute(0, 3, 1, 2, 4)
    return apart.reshape(shape.trees * shape.longest, shape.key_heads * each, width).index_select(0, back)


def enable_forests(backbone: Any) -> bool:
    """Switch a causal backbone to passes over forests; false, and unchanged, for one that they do not suit."""
    if not getattr(backbone, "_supports_attention_backend", False) or windowed(backbone.config):
        return False
    if backbone.config._attn_implementation == ATTENTION:
        return True
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, forest_attention)
    before = backbone.config._attn_implementation
    try:
        rows = probe_rows(backbone)
        rows.append([*rows[0][:4], *rows[2]])
        ends = np.cumsum([len(row) for row in rows]) - 1
        expected = padded_states(backbone, rows)[ends]
        backbone.set_attn_implementation(ATTENTION)
        with torch.inference_mode():
            found = forest_states(backbone, plant([[rows[0], rows[3]], rows[1:3]]))[[0, 2, 3, 1]]
        if same_states(expected, found):
            return True
    except Exception as error:  # whatever a model raises that knows no such positions or arguments
        _log.info(
            "shared beginnings do not suit this model", model=type(backbone).__name__, reason=str(error)
        )
    backbone.set_attn_implementation(before)
    return False
