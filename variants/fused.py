"""Every rung of the ladder, each with its switch, dispatched by shape so that a fusion runs only where it pays.

    norm_linear        RMSNorm inside the QKV projection (and inside gate/up)
    residual_epilogue  residual add inside o_proj and down, which also emit the sums of squares that the next norm needs
    silu_epilogue      SiLU product inside gate/up
    qkv_post           q/k norm, RoPE and the KV store in one kernel, or at the end of the QKV projection of many rows
    attention          in decode steps the same, attention and the merge of its parts in one kernel; needs qkv_post
    lm_head            final norm, LM head and argmax without logits in memory

With all of them a layer's two norms cost neither a kernel nor a pass over memory. `runtime.pdl` lets each kernel load
its weights while the one before it still runs. With many rows `norm_linear` and `silu_epilogue` run as other kernels
(variants/kernels/normed_product_sm90.py), and cuBLAS adds the residual.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import Runtime, Variant
from engine.batch import Context, LayerCache, Stream
from engine.ops import Ops
from engine.ranges import op, rung
from engine.weights import LayerWeights, Linear
from variants.dispatch import attention_pays, pays_here, product_adds, say_off, whole_heads_pay
from variants.folding import fold_layers
from variants.kernels.decode_qkv_attention import decode_qkv_attention
from variants.kernels.decode_qkv_attention_sm90 import hopper_takes_decode
from variants.kernels.gate_up_silu import norm_gate_up_silu
from variants.kernels.linear_add import linear_add
from variants.kernels.lm_head import norm_lm_head_argmax
from variants.kernels.norm_linear import norm_linear
from variants.kernels.normed_qkv_sm90 import hopper_takes_whole_heads, normed_qkv_sm90
from variants.kernels.qkv_post import qk_norm_rope_store

SWITCHES: dict[str, bool] = {
    "norm_linear": True,
    "residual_epilogue": True,
    "silu_epilogue": True,
    "qkv_post": True,
    "attention": True,
    "lm_head": True,
}
KERNELS = {
    "norm_linear": "_norm_linear_kernel*",
    "residual_epilogue": "_linear_add_kernel",
    "silu_epilogue": "_gate_up_silu_kernel*",
    "qkv_post": "*_qkv_post_kernel*",
    "attention": "_decode_qkv_attention_kernel*",
    "lm_head": "_tile_argmax_kernel",
}


@dataclass(frozen=True)
class FusedOps(Ops):
    """The fused kernels where a switch is on and the dispatch table says that they pay, else the baseline's."""

    switches: Mapping[str, bool]
    pdl: bool

    def runs(self, name: str, x_TK: Tensor, linear: Linear) -> bool:
        """Whether a rung's kernel takes this product; if so it leaves its mark for a trace."""
        takes = self.switches[name] and pays_here(name, x_TK, linear.weight_NK)
        if takes:
            rung(name)
        return takes

    @op
    def norm_linear(self, stream: Stream, weight_H: Tensor | None, linear: Linear, eps: float) -> tuple[Tensor, Tensor]:
        """(linear(norm(stream)), the stream as one tensor)."""
        x = stream.delta_TH
        if weight_H is not None or not self.runs("norm_linear", x, linear):
            return super().norm_linear(stream, weight_H, linear, eps)
        return norm_linear(x, stream.residual_TH, linear.weight_NK, linear.bias_N, eps, stream.square_sums_TJ, self.pdl)

    @op
    def linear_add(self, x_TK: Tensor, linear: Linear, residual_TH: Tensor) -> Stream:
        """residual + linear(x): added in the epilogue with its sums of squares, or left pending for the next norm."""
        if linear.sum_over is not None:
            # Its epilogue would add the residual, and square the sum, once for each rank's part of the product.
            say_off("residual_epilogue", "the product is summed over tensor-parallel ranks")
            return Stream(self.linear(x_TK, linear), residual_TH)
        if self.switches["residual_epilogue"] and linear.bias_N is None and product_adds(x_TK, linear.weight_NK):
            # Nobody else reads the stream as it was. No mark: a trace does not tell this product from others.
            return Stream(residual_TH.addmm_(x_TK, linear.weight_NK.t()), None)
        if not self.runs("residual_epilogue", x_TK, linear):
            return Stream(self.linear(x_TK, linear), residual_TH)
        y, square_sums = linear_add(x_TK, linear.weight_NK, linear.bias_N, residual_TH, self.pdl)
        return Stream(y, None, square_sums)

    @op
    def gate_up_silu(self, stream: Stream, layer: LayerWeights, eps: float) -> tuple[Tensor, Tensor]:
        """(silu(gate) * up of the normed stream, the stream as one tensor)."""
        x = stream.delta_TH
        if layer.mlp_norm_H is not None or not self.runs("silu_epilogue", x, layer.gate_up):
            gate_up, residual = self.norm_linear(stream, layer.mlp_norm_H, layer.gate_up, eps)
            return self.silu_mul(gate_up), residual
        weight, bias = layer.gate_up.weight_NK, layer.gate_up.bias_N
        return norm_gate_up_silu(x, stream.residual_TH, weight, bias, eps, stream.square_sums_TJ, self.pdl)

    @op
    def qkv_post(self, qkv_TO: Tensor, layer: LayerWeights, cache: LayerCache, ctx: Context) -> Tensor:
        """Rotated queries; keys and values in their pages."""
        if not self.switches["qkv_post"]:
            return super().qkv_post(qkv_TO, layer, cache, ctx)
        rung("qkv_post")
        config, batch = ctx.config, ctx.batch
        return qk_norm_rope_store(
            qkv_TO, layer.q_norm_D, layer.k_norm_D, ctx.cos_PD2, ctx.sin_PD2, batch.positions_T, batch.slots_T,
            cache.k, cache.v, config.num_heads, config.num_kv_heads, config.head_dim, config.norm_eps, self.pdl,
        )  # fmt: skip

    def _attends_at_once(self, qkv_TO: Tensor, cache: LayerCache, ctx: Context) -> bool:
        """Whether one kernel leads from the QKV projection of a decode step to the attention output."""
        if not (self.switches["attention"] and self.switches["qkv_post"]) or ctx.batch.cu_seqlens_B1 is not None:
            return False
        hopper = hopper_takes_decode(qkv_TO, cache.k, ctx.config.num_heads, ctx.config.sliding_window)
        return attention_pays(ctx.batch.num_decode, hopper)

    @op
    def attend(self, qkv_TO: Tensor, layer: LayerWeights, cache: LayerCache, ctx: Context) -> Tensor:
        """From the packed projection to the attention output [T, N * D]: one kernel where every row decodes."""
        config, batch = ctx.config, ctx.batch
        if not self._attends_at_once(qkv_TO, cache, ctx):
            return self.attention(self.qkv_post(qkv_TO, layer, cache, ctx), cache, ctx)
        rung("attention")
        o = decode_qkv_attention(
            qkv_TO, layer.q_norm_D, layer.k_norm_D, ctx.cos_PD2, ctx.sin_PD2, batch.positions_T, batch.slots_T,
            cache.k, cache.v, batch.block_tables_BP, batch.context_lens_B, config.num_heads, config.num_kv_heads,
            config.head_dim, config.norm_eps, config.head_dim**-0.5, config.sliding_window, self.pdl,
        )  # fmt: skip
        return o.flatten(1)

    def _projects_at_once(self, stream: Stream, layer: LayerWeights, cache: LayerCache, ctx: Context) -> bool:
        """Whether one kernel leads from the stream to queries, keys and values of a step with prompts."""
        if not (self.switches["norm_linear"] and self.switches["qkv_post"]) or ctx.batch.cu_seqlens_B1 is None:
            return False
        x, weight = stream.delta_TH, layer.qkv.weight_NK
        return layer.attn_norm_H is None and whole_heads_pay(x, weight) and hopper_takes_whole_heads(x, weight, cache.k)

    @op
    def norm_qkv(self, stream: Stream, layer: LayerWeights, cache: LayerCache, ctx: Context) -> tuple[Tensor, Tensor]:
        """(rotated queries, the stream as one tensor); keys and values are in their pages."""
        rung("norm_linear")
        rung("qkv_post")
        config, batch, qkv = ctx.config, ctx.batch, layer.qkv
        return normed_qkv_sm90(
            stream.delta_TH, stream.residual_TH, qkv.weight_NK, qkv.bias_N, stream.square_sums_TJ,
            layer.q_norm_D, layer.k_norm_D, ctx.cos_PD2, ctx.sin_PD2, batch.positions_T, batch.slots_T,
            cache.k, cache.v, config.num_heads, config.norm_eps, self.pdl,
        )  # fmt: skip

    def layer(self, layer: LayerWeights, stream: Stream, cache: LayerCache, ctx: Context) -> Stream:
        """One decoder layer: at best five kernels."""
        eps = ctx.config.norm_eps
        if self._projects_at_once(stream, layer, cache, ctx):
            q, residual = self.norm_qkv(stream, layer, cache, ctx)
            attended = self.attention(q, cache, ctx)
        else:
            qkv, residual = self.norm_linear(stream, layer.attn_norm_H, layer.qkv, eps)
            attended = self.attend(qkv, layer, cache, ctx)
        stream = self.linear_add(attended, layer.o, residual)
        hidden, residual = self.gate_up_silu(stream, layer, eps)
        return self.linear_add(hidden, layer.down, residual)

    @op
    def next_token(self, stream: Stream, norm_H: Tensor | None, lm_head: Linear, eps: float) -> Tensor:
        """The greedy next token of each row, logits never in memory."""
        x = stream.delta_TH
        if lm_head.bias_N is not None or not self.runs("lm_head", x, lm_head):
            return super().next_token(stream, norm_H, lm_head, eps)
        token, logit = norm_lm_head_argmax(x, stream.residual_TH, norm_H, lm_head.weight_NK, eps, pdl=self.pdl)
        return token if lm_head.columns is None else self.best_of_ranks(token, logit, lm_head.columns)


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The fused engine with some of its rungs."""
    decoding = FusedOps(switches, pdl=runtime.pdl and torch.cuda.is_available())
    # Among grids of several waves, blocks that wait for the kernel before them presumably only take its room: it is
    # slower (docs/data/prefill_pdl.json).
    prompts = FusedOps(switches, pdl=False)
    return Variant(name, decoding, fold_layers, runtime, switches, KERNELS, prompts)
