"""The last norm, the LM head and the greedy choice: logits never reach memory.

    s = x + residual, rounded to the dtype;  logits = (s * gamma) W^T / sqrt(mean(s^2) + eps);  token = argmax logits

Shape suffixes: B rows, H hidden size, V vocabulary, J vocabulary tiles. Gamma is applied to x, because a tied W
cannot take it in: s * gamma is rounded to the dtype, the products accumulate in fp32 and the logits stay fp32. One or
two rows are normed by every tile, more by the baseline's kernel before. Two stages: the best logit of each vocabulary
tile, then the best of those. Equal logits: the lowest token wins. A NaN logit counts as +inf, so that a broken row
still yields a token of the vocabulary, the one torch.argmax would take.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels._triton import cdiv, pdl_options, tl, triton
from engine.kernels.argmax import NO_TOKEN, merge_argmax_triton
from engine.kernels.norm import add_rms_norm_triton, rms_norm_triton
from variants.kernels.product import begin, product, tile_index
from variants.kernels.tile_table import choose_tile
from variants.kernels.tiles import Tile, can_prefetch


# The number of rows changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["M"])
def _tile_argmax_kernel(
    x_ptr, residual_ptr, gamma_ptr, w_ptr, best_ptr, token_ptr, M, N, K, x_stride, r_stride, w_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best logit of BLOCK_M rows among BLOCK_N tokens; x is normed here on the gemv path, before on the others."""
    tile_m, tile_n = tile_index(M, N, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    w, w2 = begin(w_ptr, None, w_stride, tile_m, tile_n, N, 0, K, PATH, BLOCK_N, BLOCK_K, PREFETCH, PDL)
    acc, _, squares = product(
        w, w2, None, None, x_ptr, residual_ptr, None, gamma_ptr, w_ptr, None,
        x_stride, r_stride, 0, w_stride, tile_m, tile_n, M, N,
        0, K, PATH, BLOCK_M, BLOCK_N, BLOCK_K, PATH == "gemv", STAGES, EVEN, ONCE,
    )  # fmt: skip
    axis: tl.constexpr = 1 if PATH == "wide" else 0
    logits = acc
    if PATH == "gemv":
        logits = acc * tl.expand_dims(tl.rsqrt(squares / K + eps), axis)
    tokens = tl.expand_dims(n, 1 - axis)
    logits = tl.where(logits != logits, float("inf"), logits)
    logits = tl.where(tokens < N, logits, float("-inf"))
    best = tl.max(logits, axis=axis)
    token = tl.min(tl.where(logits == tl.expand_dims(best, axis), tokens, NO_TOKEN), axis=axis)
    target = m.to(tl.int64) * tl.cdiv(N, BLOCK_N) + tile_n
    tl.store(best_ptr + target, best, mask=m < M)
    tl.store(token_ptr + target, token, mask=m < M)


def norm_lm_head_argmax_triton(
    x_BH: Tensor,
    residual_BH: Tensor | None,
    norm_weight_H: Tensor | None,
    weight_VH: Tensor,
    eps: float,
    pdl: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Launcher of `_tile_argmax_kernel` and `_merge_argmax_kernel`; see `norm_lm_head_argmax`.

    `tile` overrides the choice by shape.
    """
    (m, k), n, device = x_BH.shape, weight_VH.shape[0], x_BH.device
    if m == 0:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.float32, device=device)
    tile = tile or choose_tile("lm_head", x_BH, weight_VH)
    if tile.path != "gemv":
        x_BH = _normed(x_BH, residual_BH, norm_weight_H, eps, pdl)
        residual_BH, norm_weight_H = None, None
    num_tiles = cdiv(n, tile.block_n)
    tile_best = torch.empty((m, num_tiles), dtype=torch.float32, device=device)
    tile_token = torch.empty((m, num_tiles), dtype=torch.int32, device=device)
    _tile_argmax_kernel[tile.grid(m, n)](
        x_BH, residual_BH, norm_weight_H, weight_VH, tile_best, tile_token, m, n, k,
        x_BH.stride(0), 0 if residual_BH is None else residual_BH.stride(0), weight_VH.stride(0), eps,
        PATH=tile.path, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, STAGES=tile.stages,
        EVEN=tile.even(k), ONCE=tile.once(k), PREFETCH=can_prefetch(weight_VH, tile),
        num_warps=tile.num_warps, **pdl_options(pdl),
    )  # fmt: skip
    return merge_argmax_triton(tile_best, tile_token, pdl)


def _normed(x_BH: Tensor, residual_BH: Tensor | None, norm_weight_H: Tensor | None, eps: float, pdl: bool) -> Tensor:
    """x (+ residual) normed in a kernel of its own, once and not by every tile of the vocabulary."""
    if residual_BH is None:
        return rms_norm_triton(x_BH, norm_weight_H, eps, pdl=pdl)
    return add_rms_norm_triton(x_BH, residual_BH, norm_weight_H, eps, pdl)[0]


def norm_lm_head_argmax_reference(
    x_BH: Tensor,
    residual_BH: Tensor | None,
    norm_weight_H: Tensor | None,
    weight_VH: Tensor,
    eps: float,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """Plain-PyTorch twin of `norm_lm_head_argmax_triton`; float64 inputs make it the oracle."""
    compute = torch.promote_types(x_BH.dtype, torch.float32)
    s = (x_BH if residual_BH is None else x_BH + residual_BH).to(compute)
    scaled = s if norm_weight_H is None else (s * norm_weight_H.to(compute)).to(x_BH.dtype).to(compute)
    logits = F.linear(scaled, weight_VH.to(compute)) * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
    best, tokens = logits.nan_to_num(float("inf"), float("inf"), float("-inf")).max(-1)
    return tokens, best


def norm_lm_head_argmax(
    x_BH: Tensor,
    residual_BH: Tensor | None,
    norm_weight_H: Tensor | None,
    weight_VH: Tensor,
    eps: float,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """(greedy tokens int64 [B], their logits fp32 [B])."""
    return (norm_lm_head_argmax_triton if x_BH.is_cuda else norm_lm_head_argmax_reference)(
        x_BH, residual_BH, norm_weight_H, weight_VH, eps, pdl
    )
