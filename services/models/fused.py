"""The Llama family's decoder as few, large operations: for generation, where each token is a pass of its own.

    embed ──▶ [ norm ▸ q,k,v in one product ▸ rotate ▸ attend (the caller's) ▸ out + residual
                norm ▸ silu(gate) ▸ · up ▸ down + residual ] a layer ──▶ norm ──▶ head

Rows are tokens without padding: [tokens, width]. Where keys and values lie, and who sees whom, is the caller's.
Shares the model's parameters; on processors it keeps a second copy in the order that oneDNN computes in, made anew for
tensors that were written to since (a float32 product of 16 rows takes 0.4 to 0.9 of the time). `fuse` tries it against
the model's own pass: a model that does more than meets the eye is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
import torch
from torch.nn.functional import layer_norm, linear, rms_norm, silu

from services.models.one_token import Step, compiled
from services.models.packed import windowed

# (layer, queries [tokens, heads, width], keys and values [tokens, 2 * key heads, width]) -> [tokens, heads * width].
Attend = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_NORMS = {"input_layernorm", "post_attention_layernorm"}
# Kinds of rotary embeddings whose angles depend on the position alone.
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
# What each layer's attention may say of itself alone: its place, and whether it is trained.
_OF_A_LAYER = {"layer_idx", "training"}
_log = structlog.get_logger(__name__)


class Product:
    """x @ weight.T + bias of linear layers side by side, [tokens, inputs] to [tokens, all their outputs]."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._parameters = [(layer.weight, getattr(layer, "bias", None)) for layer in layers]
        self._packed: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._seen: tuple[int, ...] = ()

    def refresh(self) -> None:
        """Follow parameters that were written to since the last call."""
        tensors = [each for pair in self._parameters for each in pair if each is not None]
        seen = tuple(tensor._version for tensor in tensors)
        if seen == self._seen:
            return
        self._seen = seen
        self._packed = _reordered(_joined([weight.detach() for weight, _ in self._parameters]))
        self._bias = None
        if any(bias is not None for _, bias in self._parameters):
            # One without stands beside one with.
            self._bias = _joined(
                [
                    weight.new_zeros(len(weight)) if bias is None else bias.detach()
                    for weight, bias in self._parameters
                ]
            )

    @property
    def reordered(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weight and bias as oneDNN takes them; None where the parameters themselves compute."""
        return None if self._packed is None else (self._packed, self._bias)

    def __call__(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """The product; `silu` is applied to it where that is asked for."""
        if self._packed is not None:
            # oneDNN's name of silu is swish.
            name = "swish" if activation == "silu" else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, name, [], "")
        parts = [linear(x, weight, bias) for weight, bias in self._parameters]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return silu(y) if activation == "silu" else y

    def with_other(self, x: torch.Tensor, other: torch.Tensor, operation: str) -> torch.Tensor:
        """The product plus (`add`) or times (`mul`) another tensor [tokens, outputs]."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self._bias, operation)
        y = self(x)
        return y + other if operation == "add" else y * other


class Norm:
    """RMSNorm (arXiv 1910.07467) of rows [rows, width].

    On a processor the layer norm of x beside -x: its mean is 0, and its variance the mean square of x. That is three
    kernels where torch's RMSNorm is eight, and between two products each one's code comes from afar.
    """

    def __init__(self, norm: Any) -> None:
        self._weight, self._eps = norm.weight, float(norm.variance_epsilon)
        self._twice: torch.Tensor | None = None

    def refresh(self) -> None:
        """Follow a weight that was written to since the last call."""
        if self._weight.device.type == "cpu":
            # Always: torch's fused optimisers write without raising a tensor's version.
            self._twice = torch.cat([self._weight, self._weight]).detach()

    @property
    def twice(self) -> torch.Tensor | None:
        """The weight beside itself; None where torch's own RMSNorm computes."""
        return self._twice

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        return self._eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x / rms(x) * weight."""
        width = x.shape[-1]
        if self._twice is None:
            return rms_norm(x, (width,), self._weight, self._eps)
        return layer_norm(torch.cat([x, -x], -1), (2 * width,), self._twice, None, self._eps)[..., :width]


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One below the other; without a copy where there is one alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _reordered(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's order; None where that is not faster or not there."""
    if (
        weight.device.type != "cpu"
        or weight.dtype not in (torch.bfloat16, torch.float32)
        or not torch.backends.mkldnn.is_available()
    ):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    except (AttributeError, RuntimeError):  # a build without it, a processor without bfloat16
        return None


class _Layer:
    """One block's products and norms."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Product([attention.o_proj])
        self.gate, self.up = Product([mlp.gate_proj]), Product([mlp.up_proj])
        self.down = Product([mlp.down_proj])
        self.norm, self.mlp_norm = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.q_norm = Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.k_norm = Norm(attention.k_norm) if hasattr(attention, "k_norm") else None

    def products(self) -> list[Product]:
        return [self.qkv, self.out, self.gate, self.up, self.down]

    def parts(self) -> list[Product | Norm]:
        norms = [self.norm, self.mlp_norm, self.q_norm, self.k_norm]
        return [*self.products(), *(norm for norm in norms if norm is not None)]


Operands = tuple[list[list[torch.Tensor]], list[list[torch.Tensor | None]], list[list[torch.Tensor]]]
"""By layer: weights and biases of the five products, the two norms."""


def _operands(layers: Sequence[_Layer]) -> Operands | None:
    """What one_token.py computes with; None for layers that do more, or not in oneDNN's order."""
    found = [[product.reordered for product in layer.products()] for layer in layers]
    norms = [[layer.norm.twice, layer.mlp_norm.twice] for layer in layers]
    epsilons = {norm.eps for layer in layers for norm in (layer.norm, layer.mlp_norm)}
    more = any(layer.q_norm is not None for layer in layers)
    if more or len(epsilons) > 1 or any(None in row for row in found) or any(None in row for row in norms):
        return None
    pairs = [[pair for pair in row if pair is not None] for row in found]
    return (
        [[weight for weight, _ in row] for row in pairs],
        [[bias for _, bias in row] for row in pairs],
        [[twice for twice in row if twice is not None] for row in norms],
    )


class FusedDecoder:
    """A causal model of the Llama family's form, made by `fuse`."""

    def __init__(self, model: Any) -> None:
        backbone = model.base_model
        attention = backbone.layers[0].self_attn
        self.width = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.width
        self.key_heads = attention.k_proj.out_features // self.width
        self.scaling = float(attention.scaling)
        self._embed = backbone.embed_tokens
        self._norm = Norm(backbone.norm)
        self._head = Product([model.get_output_embeddings()])
        self._layers = [_Layer(layer) for layer in backbone.layers]
        self._cosine, self._sine = rotations(backbone)
        self._step: Step | None = None
        self._operands: Operands | None = None
        self.refresh()

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return len(self._layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of states, keys and values."""
        return self._embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._embed.weight.device

    def refresh(self) -> None:
        """Follow weights that changed since: call it before a pass."""
        for layer in self._layers:
            for part in layer.parts():
                part.refresh()
        self._norm.refresh()
        self._head.refresh()
        self._operands = _operands(self._layers)
        if self._operands is not None and self._step is None:
            self._step = compiled()

    def states(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Last hidden states [tokens, width] of token ids [tokens] int64 at positions [tokens] int64."""
        x = self._embed(ids)
        cosine, sine = self._cosine[positions], self._sine[positions]
        for at, layer in enumerate(self._layers):
            queries, pair = self._project(layer, layer.norm(x), cosine, sine)
            x = layer.out.with_other(attend(at, queries, pair), x, "add")
            y = layer.mlp_norm(x)
            y = layer.up.with_other(y, layer.gate(y, "silu"), "mul")
            x = layer.down.with_other(y, x, "add")
        return self._norm(x)

    @property
    def steps(self) -> bool:
        """Whether `step` can be called."""
        return self._step is not None and self._operands is not None

    def step(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        buffer: torch.Tensor,
        at: torch.Tensor,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """As `states`, for one token [rows] more in every row of a cache, in one call (one_token.py).

        buffer: [layers, rows or more, columns or more, 2 * key heads, width of a head], written to at `at` [rows];
        seen: what is added to scores, [rows, 1, 1, columns].
        """
        assert self._step is not None  # noqa: S101 - see steps
        assert self._operands is not None  # noqa: S101
        x = self._step(
            self._embed(ids),
            [self._cosine[positions], self._sine[positions]],
            buffer,
            at,
            seen,
            *self._operands,
            self.heads,
            self._norm.eps,
            self.scaling,
        )
        return self._norm(x)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in the model's dtype, of states [rows, width]."""
        return self._head(states)

    def _project(
        self, layer: _Layer, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries [tokens, heads, width]; rotated keys with values, [tokens, 2 * key heads, width]."""
        joint = layer.qkv(x).view(len(x), -1, self.width)
        turned = joint[:, : self.heads + self.key_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries = layer.q_norm(turned[:, : self.heads])
            turned = torch.cat([queries, layer.k_norm(turned[:, self.heads :])], 1)
        half = self.width // 2
        rotated = turned * cosine
        rotated[..., :half].addcmul_(turned[..., half:], sine[..., :half])
        rotated[..., half:].addcmul_(turned[..., :half], sine[..., half:])
        joint[:, : self.heads + self.key_heads] = rotated
        return joint[:, : self.heads], joint[:, self.heads :]


def rotations(backbone: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position, [positions, 1, width of a head], in the dtype of the states.

    rotate_half(x) * sine is (-x2, x1) * sine: the sign stands in the sine of the first half.
    """
    places = torch.arange(backbone.config.max_position_embeddings, device=backbone.device)[None]
    cosine, sine = backbone.rotary_emb(backbone.embed_tokens.weight[:1, None], places)
    half = cosine.shape[-1] // 2
    return cosine[0, :, None, :], torch.cat([-sine[0, :, None, :half], sine[0, :, None, half:]], -1)


def fuse(model: Any) -> FusedDecoder | None:
    """The fused twin of a causal model; None for one of another form, or that computes something else."""
    if not has_the_form(model):
        return None
    with torch.inference_mode():
        fused = FusedDecoder(model)
        ids = torch.arange(7, device=fused.device) * 31 % model.get_input_embeddings().weight.shape[0]
        expected = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        found = fused.states(ids, torch.arange(len(ids), device=fused.device), _CausalRow(fused))
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
    difference = float((expected.float() - found.float()).abs().mean())
    if difference <= tolerance * (float(expected.float().std()) or 1.0):
        return fused
    _log.info("the fused decoder does not suit this model", model=type(model).__name__, difference=difference)
    return None


class _CausalRow:
    """Attend within one row, everything before and itself: for the trial."""

    def __init__(self, fused: FusedDecoder) -> None:
        self._fused = fused

    def __call__(self, _layer: int, queries: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        keys, values = pair.transpose(0, 1)[None].chunk(2, 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys,
            values,
            is_causal=True,
            scale=self._fused.scaling,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).reshape(len(queries), -1)


def has_the_form(model: Any) -> bool:
    """Whether a model's, or a backbone's, modules, activation and positions are the Llama family's."""
    backbone, config = model.base_model, model.config
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    if not all(hasattr(backbone, part) for part in parts) or windowed(config):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if getattr(config, "hidden_act", None) != "silu" or rope.get("rope_type", "default") not in _STATIC_ROPE:
        return False
    # Ministral 3 scales its queries by their positions, far beyond those of a trial.
    if rope.get("llama_4_scaling_beta"):
        return False
    return all(_has_the_parts(layer) for layer in backbone.layers) and _attend_alike(backbone.layers)


def _attend_alike(layers: Sequence[Any]) -> bool:
    """Whether no layer's attention says another number than the lowest one's: SmolLM3's use_rope does."""

    def said(layer: Any) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(layer.self_attn).items()
            if isinstance(value, str | int | float | None)
            and name not in _OF_A_LAYER
            and not name.startswith("_")
        }

    return all(said(layer) == said(layers[0]) for layer in layers)


def _has_the_parts(layer: Any) -> bool:
    def names(module: Any, kind: type) -> set[str]:
        return {name for name, part in module.named_children() if isinstance(part, kind)}

    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None:
        return False
    norms = {name for name, part in layer.named_children() if hasattr(part, "variance_epsilon")}
    return (
        norms == _NORMS
        and names(attention, torch.nn.Linear) == _ATTENTION
        and names(mlp, torch.nn.Linear) == _MLP
        and hasattr(attention, "head_dim")
        and hasattr(attention, "scaling")
    )
