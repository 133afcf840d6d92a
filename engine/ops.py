"""Every operation of the forward pass: primitive ops, the regions they form, and the layer they add up to.

These are the only places where a variant can differ: it subclasses `Ops`, overrides what it replaces and is passed to
the engine as a value. The methods here launch what nano-vLLM launches, one kernel an op.

Shape suffixes: T tokens, B sequences, V vocabulary, H hidden size, I intermediate size, N heads (queries), M heads
(keys and values), D head dim, K and O a linear layer's input and output.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import Context, LayerCache, Stream
from engine.kernels.activation import silu_mul
from engine.kernels.argmax import argmax
from engine.kernels.decode_attention import paged_decode_attention
from engine.kernels.kv_store import store_kv
from engine.kernels.norm import add_rms_norm, rms_norm
from engine.kernels.prefill_attention import varlen_prefill_attention
from engine.kernels.rope import rope
from engine.parallel.ranks import Columns, Ranks
from engine.ranges import op
from engine.weights import LayerWeights, Linear


class Ops:
    """The baseline. On CUDA each op is one kernel (Triton or cuBLAS), and one more where it merges parts; on a CPU
    it is a plain-PyTorch twin."""

    # Whether kernels that can are launched before the one before them has ended (programmatic dependent launch).
    pdl: bool = False

    # Primitive ops.

    @op
    def embed(self, token_ids_T: Tensor, embed_VH: Tensor) -> Tensor:
        """Token embeddings [T, H]."""
        return F.embedding(token_ids_T, embed_VH)

    @op
    def rms_norm(self, x_TH: Tensor, weight_H: Tensor | None, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension, in fp32, rounded once."""
        return rms_norm(x_TH, weight_H, eps, self.pdl)

    @op
    def add_rms_norm(
        self, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual), the sum rounded before it is normed."""
        return add_rms_norm(x_TH, residual_TH, weight_H, eps, self.pdl)

    @op
    def linear(self, x_TK: Tensor, linear: Linear) -> Tensor:
        """x @ weight.T + bias [T, O], added up where the ranks hold parts of K."""
        y_TO = F.linear(x_TK, linear.weight_NK, linear.bias_N)
        return y_TO if linear.sum_over is None else self.all_reduce(y_TO, linear.sum_over)

    @op
    def all_reduce(self, x: Tensor, ranks: Ranks) -> Tensor:
        """x added up over the ranks, in place."""
        return ranks.sum(x)

    @op
    def all_gather(self, part_BN: Tensor, columns: Columns) -> Tensor:
        """The outputs of all ranks side by side [B, V]."""
        return columns.join(part_BN)

    @op
    def best_of_ranks(self, token_B: Tensor, logit_B: Tensor, columns: Columns) -> Tensor:
        """The greedy token of each row, int64 [B], from the best of each rank's part of the vocabulary."""
        return columns.best(token_B, logit_B)

    @op
    def rope(self, q_TND: Tensor, k_TMD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by their positions."""
        return rope(q_TND, k_TMD, ctx.batch.positions_T, ctx.cos_PD2, ctx.sin_PD2)

    @op
    def store_kv(self, k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, ctx: Context) -> None:
        """Write this step's keys and values to their pages."""
        store_kv(k_TMD, v_TMD, cache.k, cache.v, ctx.batch.slots_T)

    @op
    def decode_attention(self, q_BND: Tensor, cache: LayerCache, ctx: Context) -> Tensor:
        """One query per sequence against its pages."""
        batch, n = ctx.batch, ctx.batch.num_decode
        scale, window = ctx.config.head_dim**-0.5, ctx.config.sliding_window
        tables, lens = batch.block_tables_BP[:n], batch.context_lens_B[:n]
        return paged_decode_attention(q_BND, cache.k, cache.v, tables, lens, scale, window, self.pdl)

    @op
    def prefill_attention(self, q_TND: Tensor, cache: LayerCache, ctx: Context) -> Tensor:
        """Chunks of queries against their sequences' pages, causal from the end."""
        batch, n = ctx.batch, ctx.batch.num_decode
        scale, window = ctx.config.head_dim**-0.5, ctx.config.sliding_window
        tables, lens = batch.block_tables_BP[n:], batch.context_lens_B[n:]
        cu_seqlens = cast(Tensor, batch.cu_seqlens_B1)
        return varlen_prefill_attention(
            q_TND, cache.k, cache.v, tables, lens, cu_seqlens, batch.max_query_len, scale, window
        )

    @op
    def silu_mul(self, gate_up_T2I: Tensor) -> Tensor:
        """silu(gate) * up, [T, 2I] -> [T, I]."""
        return silu_mul(gate_up_T2I, self.pdl)

    @op
    def argmax(self, logits_BV: Tensor) -> Tensor:
        """The greedy token of each row, int64 [B]; the lowest index among equals."""
        return argmax(logits_BV, self.pdl)

    # Regions: what fusions swallow.

    def norm(self, stream: Stream, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """(normed, residual): the pending delta is added on the way."""
        if stream.residual_TH is None:
            return self.rms_norm(stream.delta_TH, weight_H, eps), stream.delta_TH
        return self.add_rms_norm(stream.delta_TH, stream.residual_TH, weight_H, eps)

    def norm_linear(self, stream: Stream, weight_H: Tensor | None, linear: Linear, eps: float) -> tuple[Tensor, Tensor]:
        """(linear(norm(stream)), residual): RMSNorm and the linear layer it feeds."""
        normed, residual = self.norm(stream, weight_H, eps)
        return self.linear(normed, linear), residual

    def qkv_post(self, qkv_TO: Tensor, layer: LayerWeights, cache: LayerCache, ctx: Context) -> Tensor:
        """From the packed projection to rotated queries [T, N, D], with keys and values in their pages."""
        config = ctx.config
        q, k, v = qkv_TO.split((config.q_size, config.kv_size, config.kv_size), dim=-1)
        q = q.unflatten(-1, (config.num_heads, config.head_dim))
        k = k.unflatten(-1, (config.num_kv_heads, config.head_dim))
        v = v.unflatten(-1, (config.num_kv_heads, config.head_dim))
        if config.qk_norm:
            q = self.rms_norm(q, layer.q_norm_D, config.norm_eps)
            k = self.rms_norm(k, layer.k_norm_D, config.norm_eps)
        q, k = self.rope(q, k, ctx)
        self.store_kv(k, v, cache, ctx)
        return q

    def attention(self, q_TND: Tensor, cache: LayerCache, ctx: Context) -> Tensor:
        """Attention of the whole step [T, N * D]: decode rows, then prefill chunks."""
        n = ctx.batch.num_decode
        if ctx.batch.cu_seqlens_B1 is None:
            out = self.decode_attention(q_TND, cache, ctx)
        elif n == 0:
            out = self.prefill_attention(q_TND, cache, ctx)
        else:
            decode = self.decode_attention(q_TND[:n], cache, ctx)
            out = torch.cat((decode, self.prefill_attention(q_TND[n:], cache, ctx)))
        return out.flatten(1)

    def mlp(self, stream: Stream, layer: LayerWeights, eps: float) -> Stream:
        """Norm, gate and up, SiLU product, down."""
        gate_up, residual = self.norm_linear(stream, layer.mlp_norm_H, layer.gate_up, eps)
        return Stream(self.linear(self.silu_mul(gate_up), layer.down), residual)

    def layer(self, layer: LayerWeights, stream: Stream, cache: LayerCache, ctx: Context) -> Stream:
        """One decoder layer."""
        eps = ctx.config.norm_eps
        qkv, residual = self.norm_linear(stream, layer.attn_norm_H, layer.qkv, eps)
        q = self.qkv_post(qkv, layer, cache, ctx)
        delta = self.linear(self.attention(q, cache, ctx), layer.o)
        return self.mlp(Stream(delta, residual), layer, eps)

    def logits(self, stream: Stream, norm_H: Tensor | None, lm_head: Linear, eps: float) -> Tensor:
        """Final norm and LM head, [B, V]."""
        part_BN = self.norm_linear(stream, norm_H, lm_head, eps)[0]
        return part_BN if lm_head.columns is None else self.all_gather(part_BN, lm_head.columns)

    def next_token(self, stream: Stream, norm_H: Tensor | None, lm_head: Linear, eps: float) -> Tensor:
        """The greedy next token of each row, int64 [B]."""
        if lm_head.columns is None:
            return self.argmax(self.logits(stream, norm_H, lm_head, eps))
        part_BN = self.norm_linear(stream, norm_H, lm_head, eps)[0]
        token_B = self.argmax(part_BN)
        return self.best_of_ranks(token_B, part_BN.gather(1, token_B[:, None]).squeeze(1), lm_head.columns)
