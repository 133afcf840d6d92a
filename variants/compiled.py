"""The baseline through torch.compile: the honest second baseline, what a compiler fuses unasked.

Each layer is compiled in two parts, before and after attention, with the number of tokens as a symbol, as vLLM does it;
the KV store, attention and the output projection are the baseline's own kernels.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import Runtime, Variant
from engine.batch import Context, LayerCache, Stream
from engine.config import ModelConfig
from engine.kernels.activation import silu_mul_reference
from engine.kernels.norm import add_rms_norm_reference, rms_norm_reference
from engine.kernels.rope import rope_reference
from engine.ops import Ops
from engine.ranges import op, rung
from engine.weights import LayerWeights, Linear

SWITCHES: dict[str, bool] = {}
KERNELS = {"compile": "triton_*"}


def norm(delta_TH: Tensor, residual_TH: Tensor | None, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, residual) of the stream."""
    if residual_TH is None:
        return rms_norm_reference(delta_TH, weight_H, eps), delta_TH
    return add_rms_norm_reference(delta_TH, residual_TH, weight_H, eps)


def linear(x_TK: Tensor, linear: Linear) -> Tensor:
    """x @ weight.T + bias."""
    return F.linear(x_TK, linear.weight_NK, linear.bias_N)


def before_attention(
    delta_TH: Tensor, residual_TH: Tensor | None, layer: LayerWeights, positions_T: Tensor, cos: Tensor, sin: Tensor,
    config: ModelConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(q, k, v, residual) of a layer, rotated."""
    normed, residual = norm(delta_TH, residual_TH, layer.attn_norm_H, config.norm_eps)
    q, k, v = linear(normed, layer.qkv).split((config.q_size, config.kv_size, config.kv_size), dim=-1)
    q = q.unflatten(-1, (config.num_heads, config.head_dim))
    k = k.unflatten(-1, (config.num_kv_heads, config.head_dim))
    v = v.unflatten(-1, (config.num_kv_heads, config.head_dim))
    if config.qk_norm:
        q = rms_norm_reference(q, layer.q_norm_D, config.norm_eps)
        k = rms_norm_reference(k, layer.k_norm_D, config.norm_eps)
    q, k = rope_reference(q, k, positions_T, cos, sin)
    return q, k, v, residual


def after_attention(delta_TH: Tensor, residual_TH: Tensor, layer: LayerWeights, eps: float) -> tuple[Tensor, Tensor]:
    """(delta, residual) after a layer's MLP."""
    normed, residual = norm(delta_TH, residual_TH, layer.mlp_norm_H, eps)
    return linear(silu_mul_reference(linear(normed, layer.gate_up)), layer.down), residual


class CompiledOps(Ops):
    """Layers by the compiler. A CPU, whose cells claim no speed, runs the same functions uncompiled."""

    @cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        # A verdict tries many batch sizes and table lengths; past the limit Dynamo would silently run eagerly.
        torch._dynamo.config.recompile_limit = 256
        compiled = (torch.compile(part, dynamic=True, fullgraph=True) for part in (before_attention, after_attention))
        first, second = compiled
        return first, second

    def __getstate__(self) -> dict[str, object]:
        """Nothing: a process that is sent the variant compiles for itself."""
        return {}

    @op
    def layer(self, layer: LayerWeights, stream: Stream, cache: LayerCache, ctx: Context) -> Stream:
        """One decoder layer: compiled, attention, compiled."""
        cuda = ctx.batch.token_ids_T.is_cuda
        before, after = self._compiled if cuda else (before_attention, after_attention)
        if cuda:
            rung("compile")
        q, k, v, residual = before(
            stream.delta_TH, stream.residual_TH, layer, ctx.batch.positions_T, ctx.cos_PD2, ctx.sin_PD2, ctx.config
        )
        self.store_kv(k, v, cache, ctx)
        delta = self.linear(self.attention(q, cache, ctx), layer.o)
        delta, residual = after(delta, residual, layer, ctx.config.norm_eps)
        if layer.down.sum_over is not None:
            delta = self.all_reduce(delta, layer.down.sum_over)
        return Stream(delta, residual)


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The baseline's forward pass, compiled by layer."""
    return Variant(name, CompiledOps(), runtime=runtime, switches=switches, kernels=KERNELS)
