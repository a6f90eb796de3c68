"""One block of the Llama family's decoder with its gradient written out, for training on processors.

    h = norm(x)            q, k, v = h Wq, h Wk, h Wv          a = softmax(rot(q) rot(k)' scale + unseen) v
    y = x + a Wo           g, u = norm(y) Wg, norm(y) Wu       z = y + (silu(g) u) Wd

What autograd would keep of it is 2.5 times as much, and its products with the attention's flash kernel backwards take
ten times as long at the lengths of completions as the plain products here. Norms and gates go slice by slice: a slice
stays in the caches from its first operation to its last. Rows are tokens without padding; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import silu

from services.models.sharing import Copies

# Tokens of which everything between two products is done at once: 128 x 1536 in bfloat16 are 0.4 MB.
SLICE = 128
# Tokens that are transposed at once.
TURN = 64
# Rows of one product whose result is no wider than what comes in. Between 512 and 1,500 of them oneDNN, on two threads,
# computes at half its speed: [1088, 1536] x [1536, 576] in bfloat16 at 1.3 TFLOP/s whole, at 2.0 by 512 rows.
ROWS = 512
# Elements of the scores of one product, at most: whole rows go together up to that, the queries of a longer one apart.
SCORES = 1 << 23
# Probabilities of a block that are kept for the way back instead of being made again: 8 MB in bfloat16.
KEPT = 1 << 22

Gradients = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """What all blocks share: which tokens are a row, what they see of it, and the model's form.

    rows, time: how many rows, and the longest one's length. places: [tokens] int64, where each token stands in
    rows x time, and source [rows * time] int64, which token at each place; None where every place has a token of its
    own. copies: tokens that stand in several rows. cosine, sine: [tokens, 1, width of a head], the sine with the sign
    of rotate_half in its first half. unseen: [1 or rows, time, time] of the states' dtype, what is added to the scores
    of a token (second last): 0, and minus infinity where it does not see.
    """

    rows: int
    time: int
    places: torch.Tensor | None
    source: torch.Tensor | None
    copies: Copies | None
    cosine: torch.Tensor
    sine: torch.Tensor
    unseen: torch.Tensor
    heads: int
    key_heads: int
    width: int
    scale: float
    eps: float


class Block(torch.autograd.Function):
    """x [tokens, width] to z [tokens, width]; the weights as torch.nn.Linear and the norms hold them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layout: Layout,
        norm: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        mlp_norm: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
    ) -> torch.Tensor:
        """The block; keeps the states between its products."""
        h, root = normed(x, norm, layout.eps)
        q = rotated(_heads(product(h, query.t()), layout), layout.cosine, layout.sine)
        k = rotated(_heads(h @ key.t(), layout), layout.cosine, layout.sine)
        v = _heads(h @ value.t(), layout)
        a, likely = attended(q, k, v, layout)
        y = product(a, out.t(), plus=x)
        h, mlp_root = normed(y, mlp_norm, layout.eps)
        g, u = h @ gate.t(), h @ up.t()
        z = product(gated(g, u), down.t(), plus=y)
        ctx.layout = layout
        # Not twenty: CPython 3.11 keeps freed tuples of that length and never takes them again, up to 2,000 of them.
        ctx.save_for_backward(
            layout.cosine,
            layout.sine,
            x,
            root,
            q,
            k,
            v,
            likely,
            a,
            y,
            mlp_root,
            g,
            u,
            norm,
            query,
            key,
            value,
            out,
            mlp_norm,
            gate,
            up,
            down,
        )
        return z

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """By x and the weights."""
        cosine, sine, x, root, q, k, v, likely, a, y, mlp_root, g, u, *weights = ctx.saved_tensors
        norm, query, key, value, out, mlp_norm, gate, up, down = weights
        layout, dz = ctx.layout, grads[0]

        # A norm's gradient comes for nothing; a product only where somebody asks for it.
        _, for_query, for_key, for_value, for_out, _, for_gate, for_up, for_down = ctx.needs_input_grad[2:]

        m, dg, du = gated_backward(dz @ down, g, u)
        ddown = transposed(dz) @ m if for_down else None
        h = scaled(y, mlp_root, mlp_norm)
        dgate = transposed(dg) @ h if for_gate else None
        dup = transposed(du) @ h if for_up else None
        dy, dmlp_norm = normed_backward(
            product(du, up, plus=product(dg, gate)), y, mlp_root, mlp_norm, beside=dz
        )

        dout = dy.t() @ a if for_out else None
        dq, dk, dv = attended_backward(product(dy, out), q, k, v, likely, layout)
        dq = rotated(dq, cosine, -sine).flatten(1)
        dk = rotated(dk, cosine, -sine).flatten(1)
        dv = dv.flatten(1)
        h = scaled(x, root, norm)
        dquery = dq.t() @ h if for_query else None
        dkey = dk.t() @ h if for_key else None
        dvalue = dv.t() @ h if for_value else None
        dh = torch.addmm(product(dq, query), dk, key).addmm_(dv, value)
        dx, dnorm = normed_backward(dh, x, root, norm, beside=dy)
        return dx, None, dnorm, dquery, dkey, dvalue, dout, dmlp_norm, dgate, dup, ddown


def product(x: torch.Tensor, w: torch.Tensor, *, plus: torch.Tensor | None = None) -> torch.Tensor:
    """x @ w, and `plus`. Some rows at a time where torch's library would leave a thread idle: see ROWS."""
    if not ROWS < len(x) < 3 * ROWS or w.shape[1] > x.shape[1]:
        return x @ w if plus is None else torch.addmm(plus, x, w)
    result = torch.empty((len(x), w.shape[1]), dtype=x.dtype, device=x.device)
    for part in _even(len(x)):
        if plus is None:
            torch.mm(x[part], w, out=result[part])
        else:
            torch.addmm(plus[part], x[part], w, out=result[part])
    return result


def _even(tokens: int) -> Iterator[slice]:
    """Parts of at most ROWS, about as long as each other."""
    step = -(-tokens // -(-tokens // ROWS))
    return (slice(start, start + step) for start in range(0, tokens, step))


def transposed(x: torch.Tensor) -> torch.Tensor:
    """x.t(), side by side in memory.

    As the left factor of a wide gradient that is 2.5 times as fast as the view, and this copy, slice by slice, costs a
    third of what is won; torch's own of the whole costs all of it.
    """
    result = torch.empty((x.shape[1], len(x)), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), TURN):
        part = slice(start, start + TURN)
        result[:, part] = x[part].t()
    return result


def _heads(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[tokens, heads * width] as [tokens, heads, width]."""
    return x.view(len(x), -1, layout.width)


def _slices(tokens: int) -> Iterator[slice]:
    return (slice(start, start + SLICE) for start in range(0, tokens, SLICE))


# ---------------------------------------------------------------- RMSNorm, arXiv 1910.07467


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Gradients:
    """x / rms(x) * weight, and 1 / rms(x) in float32 or better, [tokens, 1]."""
    length = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    root = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return scaled(x, root, weight), root


def scaled(x: torch.Tensor, root: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x * root * weight, rounded once."""
    result = torch.empty_like(x)
    for part in _slices(len(x)):
        result[part] = (x[part] * root[part]).mul_(weight)
    return result


def normed_backward(
    grad: torch.Tensor, x: torch.Tensor, root: torch.Tensor, weight: torch.Tensor, *, beside: torch.Tensor
) -> Gradients:
    """By x, with `beside` (what reaches x past the norm) added, and by the weight.

    With n = x * root and d = grad * weight: dx = root * (d - n * mean(d * n)), dweight = sum of grad * n.
    """
    by_x, by_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=root.dtype)
    for part in _slices(len(x)):
        straight, g = x[part] * root[part], grad[part].to(root.dtype)
        by_weight += torch.linalg.vecdot(g, straight, dim=0)
        g = g * weight
        along = torch.linalg.vecdot(g, straight).div_(x.shape[-1])[:, None]
        by_x[part] = g.addcmul_(straight, along, value=-1).mul_(root[part]).add_(beside[part])
    return by_x, by_weight.to(weight.dtype)


# ---------------------------------------------------------------- SwiGLU, arXiv 2002.05202


def gated(g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """silu(g) * u."""
    result = torch.empty_like(g)
    for part in _slices(len(g)):
        torch.mul(silu(g[part]), u[part], out=result[part])
    return result


def gated_backward(
    grad: torch.Tensor, g: torch.Tensor, u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """silu(g) * u again, the gradient by g, and by u. Writes over `grad`."""
    product, by_g, by_u = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
    for part in _slices(len(g)):
        open_, d = silu(g[part]), grad[part]
        torch.mul(open_, u[part], out=product[part])
        torch.mul(open_, d, out=by_u[part])
        by_g[part] = torch.ops.aten.silu_backward(d.mul_(u[part]), g[part])
    return product, by_g, by_u


# ---------------------------------------------------------------- rotary embeddings, arXiv 2104.09864


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x * cosine + rotate_half(x) * sine, [tokens, heads, width]; with minus the sine its gradient."""
    half = x.shape[-1] // 2
    result = x * cosine
    result[..., :half].addcmul_(x[..., half:], sine[..., :half])
    result[..., half:].addcmul_(x[..., :half], sine[..., half:])
    return result


# ---------------------------------------------------------------- attention within each row


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention: q [tokens, heads, width], k and v [tokens, key heads, width] to [tokens, heads * width].

    And its probabilities, where they are few enough to be kept: see KEPT.
    """
    queries, keys, values = (_by_key_head(one, layout) for one in (q * early(layout.scale), k, v))
    result, likely = torch.empty_like(queries), torch.empty(0)
    for part, span, unseen in _together(layout):
        likely = _probabilities(_spanned(queries[part], span, layout), keys[part], unseen, layout)
        if span is None:
            torch.bmm(likely, values[part], out=result[part])
        else:
            _put(torch.bmm(likely, values[part]), result[part], span, layout)
    kept = likely if layout.rows * layout.heads * layout.time**2 <= min(KEPT, SCORES) else None
    return _by_token(result, layout).flatten(1), kept


def attended_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor | None,
    layout: Layout,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By q, k and v, in their shapes. grad: [tokens, heads * width]. Probabilities not kept are made again."""
    queries, keys, values = (_by_key_head(one, layout) for one in (q * early(layout.scale), k, v))
    d = _by_key_head(_heads(grad, layout), layout, once=True)
    by_q = torch.empty_like(queries)
    by_k, by_v = (_gradient(one, layout) for one in (keys, values))
    for part, span, unseen in _together(layout):
        asked, given = (_spanned(one[part], span, layout) for one in (queries, d))
        likely = _probabilities(asked, keys[part], unseen, layout) if kept is None else kept
        by_likely = torch.bmm(given, values[part].transpose(1, 2))
        by_score = torch._softmax_backward_data(by_likely, likely, -1, likely.dtype)
        _by_late(by_score, layout.scale)
        if span is None:
            torch.bmm(likely.transpose(1, 2), given, out=by_v[part])
            torch.bmm(by_score, keys[part], out=by_q[part])
            torch.bmm(by_score.transpose(1, 2), asked, out=by_k[part])
        else:
            by_v[part] += torch.bmm(likely.transpose(1, 2), given)
            _put(torch.bmm(by_score, keys[part]), by_q[part], span, layout)
            by_k[part] += torch.bmm(by_score.transpose(1, 2), asked)
    by_token = _by_token(by_q, layout).mul_(early(layout.scale))
    return by_token, _of_copies(by_k, layout).to(k.dtype), _of_copies(by_v, layout).to(v.dtype)


def early(scale: float) -> float:
    """What queries are multiplied by already, who are few while scores are many: the scale, where it rounds nothing.

    A power of two does not, as for heads of 64; else 1, and the scores are multiplied.
    """
    return scale if math.frexp(scale)[0] == 0.5 else 1.0


def _by_late(scores: torch.Tensor, scale: float) -> None:
    if early(scale) != scale:
        scores.mul_(scale)


def _probabilities(
    queries: torch.Tensor, keys: torch.Tensor, unseen: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """[rows * key heads, queries of a key head * span, time] of some rows. unseen: [1 or rows, 1, span, time]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    _by_late(scores, layout.scale)
    apart = scores.view(-1, layout.heads, unseen.shape[2], layout.time).add_(unseen)
    return torch.softmax(apart, -1).view_as(scores)


def _together(layout: Layout) -> Iterator[tuple[slice, slice | None, torch.Tensor]]:
    """Of which the scores stand at once: key heads of some rows, a span of a row's queries (None: all), what these
    do not see, [1 or rows, 1, span, time]."""
    span = _span(layout)
    step = max(1, SCORES // (layout.heads * layout.time**2))
    for start in range(0, layout.rows, step):
        end = min(start + step, layout.rows)
        unseen = layout.unseen if len(layout.unseen) == 1 else layout.unseen[start:end]
        part = slice(start * layout.key_heads, end * layout.key_heads)
        if span == layout.time:
            yield part, None, unseen[:, None]
            continue
        for first in range(0, layout.time, span):
            places = slice(first, min(first + span, layout.time))
            yield part, places, unseen[:, None, places]


def _span(layout: Layout) -> int:
    """Places of a row whose queries' scores stand at once."""
    return min(layout.time, max(1, SCORES // (layout.heads * layout.time)))


def _gradient(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Room for what comes of each row at once; a sum in float32 or better where it comes span by span."""
    if _span(layout) == layout.time:
        return torch.empty_like(x)
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _by_span(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[key heads, heads of a key head * time, width] with time apart."""
    return x.view(len(x), -1, layout.time, layout.width)


def _spanned(x: torch.Tensor, span: slice | None, layout: Layout) -> torch.Tensor:
    """Of [key heads, heads of a key head * time, width] what stands at these places."""
    return x if span is None else _by_span(x, layout)[:, :, span].flatten(1, 2)


def _put(found: torch.Tensor, into: torch.Tensor, span: slice, layout: Layout) -> None:
    """And back there."""
    places = _by_span(into, layout)[:, :, span]
    places.copy_(found.view(places.shape))


def _by_key_head(x: torch.Tensor, layout: Layout, *, once: bool = False) -> torch.Tensor:
    """[tokens, heads, width] as [rows * key heads, heads of a key head * time, width].

    A token that stands in several rows comes in all of them; `once` in its first alone, and 0 stands in the others.
    """
    if layout.source is not None and not once:
        x = x.index_select(0, layout.source)
    elif layout.places is not None:
        spread = x.new_zeros((layout.rows * layout.time, *x.shape[1:]))
        x = spread.index_copy_(0, layout.places, x)
    shape = (layout.rows, layout.time, layout.key_heads, x.shape[1] // layout.key_heads, layout.width)
    return x.view(shape).permute(0, 2, 3, 1, 4).reshape(layout.rows * layout.key_heads, -1, layout.width)


def _by_token(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """And back: [tokens, heads, width], of a token in several rows what stands in its first."""
    flat = _by_place(x, layout)
    return flat if layout.places is None else flat[layout.places]


def _of_copies(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The same, of a token in several rows the sum, in float32 or better before it is rounded."""
    if layout.copies is None:
        return _by_token(x, layout)
    flat = _by_place(x, layout)
    result = flat[layout.places]
    exact = torch.promote_types(flat.dtype, torch.float32)
    for shared, places in zip(layout.copies.shared, layout.copies.places, strict=True):
        result[shared] = flat[places].sum(1, dtype=exact).to(flat.dtype)
    return result


def _by_place(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[rows * key heads, heads of a key head * time, width] as [rows * time, heads, width]."""
    shape = (layout.rows, layout.key_heads, x.shape[1] // layout.time, layout.time, layout.width)
    return x.view(shape).permute(0, 3, 1, 2, 4).reshape(layout.rows * layout.time, -1, layout.width)
