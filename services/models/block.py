"""One block of the Llama family's decoder with its gradient written out, for training on processors.

    h = norm(x)            q, k, v = h Wq, h Wk, h Wv          a = softmax(rot(q) rot(k)' scale + causal) v
    y = x + a Wo           g, u = norm(y) Wg, norm(y) Wu       z = y + (silu(g) u) Wd

What autograd would keep of it is 2.5 times as much, and its products with the attention's flash kernel backwards take
ten times as long at the lengths of completions as the plain products here. Norms and gates go slice by slice: a slice
stays in the caches from its first operation to its last. Rows are tokens without padding; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import silu

# Tokens of which everything between two products is done at once: 128 x 1536 in bfloat16 are 0.4 MB.
SLICE = 128
# Elements of the scores of one product, at most: whole sequences go together up to that.
SCORES = 1 << 23

Gradients = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """What all blocks share: which tokens are a sequence, and the model's form. Rows lie one after the other.

    rows, time: sequences and the longest one's length. places: [tokens] int64, where each token stands in
    rows x time; None where there is no padding. cosine, sine: [tokens, 1, width of a head], the sine with the sign
    of rotate_half in its first half. causal: [time, time] of the states' dtype, 0 and minus infinity.
    """

    rows: int
    time: int
    places: torch.Tensor | None
    cosine: torch.Tensor
    sine: torch.Tensor
    causal: torch.Tensor
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
        q = rotated(_heads(h @ query.t(), layout), layout.cosine, layout.sine)
        k = rotated(_heads(h @ key.t(), layout), layout.cosine, layout.sine)
        v = _heads(h @ value.t(), layout)
        a = attended(q, k, v, layout)
        y = torch.addmm(x, a, out.t())
        h, mlp_root = normed(y, mlp_norm, layout.eps)
        g, u = h @ gate.t(), h @ up.t()
        z = torch.addmm(y, gated(g, u), down.t())
        ctx.layout = layout
        ctx.save_for_backward(
            x, root, q, k, v, a, y, mlp_root, g, u, norm, query, key, value, out, mlp_norm, gate, up, down
        )
        return z

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """By x and the weights."""
        x, root, q, k, v, a, y, mlp_root, g, u, *weights = ctx.saved_tensors
        norm, query, key, value, out, mlp_norm, gate, up, down = weights
        layout, dz = ctx.layout, grads[0]

        m, dg, du = gated_backward(dz @ down, g, u)
        ddown = dz.t() @ m
        h = scaled(y, mlp_root, mlp_norm)
        dgate, dup = dg.t() @ h, du.t() @ h
        dy, dmlp_norm = normed_backward(torch.addmm(dg @ gate, du, up), y, mlp_root, mlp_norm, beside=dz)

        dout = dy.t() @ a
        dq, dk, dv = attended_backward(dy @ out, q, k, v, layout)
        dq = rotated(dq, layout.cosine, -layout.sine).flatten(1)
        dk = rotated(dk, layout.cosine, -layout.sine).flatten(1)
        dv = dv.flatten(1)
        h = scaled(x, root, norm)
        dquery, dkey, dvalue = dq.t() @ h, dk.t() @ h, dv.t() @ h
        dh = torch.addmm(dq @ query, dk, key).addmm_(dv, value)
        dx, dnorm = normed_backward(dh, x, root, norm, beside=dy)
        return dx, None, dnorm, dquery, dkey, dvalue, dout, dmlp_norm, dgate, dup, ddown


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


# ---------------------------------------------------------------- attention within each sequence


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Causal attention: q [tokens, heads, width], k and v [tokens, key heads, width] to [tokens, heads * width]."""
    queries, keys, values = (_by_key_head(one, layout) for one in (q, k, v))
    result = torch.empty_like(queries)
    for part in _together(layout):
        likely = _probabilities(queries[part], keys[part], layout)
        torch.bmm(likely, values[part], out=result[part])
    return _by_token(result, layout).flatten(1)


def attended_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By q, k and v, in their shapes. grad: [tokens, heads * width]. The probabilities are made again."""
    queries, keys, values = (_by_key_head(one, layout) for one in (q, k, v))
    d = _by_key_head(_heads(grad, layout), layout)
    by_q, by_k, by_v = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
    for part in _together(layout):
        likely = _probabilities(queries[part], keys[part], layout)
        torch.bmm(likely.transpose(1, 2), d[part], out=by_v[part])
        by_likely = torch.bmm(d[part], values[part].transpose(1, 2))
        by_score = torch._softmax_backward_data(by_likely, likely, -1, likely.dtype).mul_(layout.scale)
        torch.bmm(by_score, keys[part], out=by_q[part])
        torch.bmm(by_score.transpose(1, 2), queries[part], out=by_k[part])
    return _by_token(by_q, layout), _by_token(by_k, layout), _by_token(by_v, layout)


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[rows * key heads, queries of a key head * time, time]."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    apart = scores.view(-1, layout.time, layout.time).mul_(layout.scale).add_(layout.causal)
    return torch.softmax(apart, -1).view_as(scores)


def _together(layout: Layout) -> Iterator[slice]:
    """Key heads of which the scores stand at once."""
    each = layout.heads // layout.key_heads * layout.time**2
    step, count = max(1, SCORES // each), layout.rows * layout.key_heads
    return (slice(start, start + step) for start in range(0, count, step))


def _by_key_head(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[tokens, heads, width] as [rows * key heads, heads of a key head * time, width]; padding is 0."""
    if layout.places is not None:
        spread = x.new_zeros((layout.rows * layout.time, *x.shape[1:]))
        x = spread.index_copy_(0, layout.places, x)
    shape = (layout.rows, layout.time, layout.key_heads, x.shape[1] // layout.key_heads, layout.width)
    return x.view(shape).permute(0, 2, 3, 1, 4).reshape(layout.rows * layout.key_heads, -1, layout.width)


def _by_token(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """And back: [tokens, heads, width]."""
    shape = (layout.rows, layout.key_heads, x.shape[1] // layout.time, layout.time, layout.width)
    flat = x.view(shape).permute(0, 3, 1, 2, 4).reshape(layout.rows * layout.time, -1, layout.width)
    return flat if layout.places is None else flat[layout.places]
