"""RMSNorm and the linear layer after it, in one kernel.

    s = x + residual, rounded to the dtype;  y = (s W^T) / sqrt(mean(s^2) + eps) + bias

Shape suffixes: T tokens (M rows), K inputs, N outputs, P tiles of the kernel before. The norm's weight is folded into
W when the weights are prepared, 1/rms is applied to the fp32 accumulator, and the result is rounded once: as accurate
as norming first with one rounding (2.33e-3 against 2.34e-3 relative error in bf16) and better than norming with two.
Where no kernel before has summed the squares, the product does with one or two rows, and `add_squares` with more.
Folding and deferral: FlashNorm (Graef and others); sums of squares from the kernel before: quack's gemm_rms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels._triton import next_power_of_2, pdl_options, tl, triton
from variants.kernels.add_squares import add_squares_triton
from variants.kernels.normed_product_sm90 import normed_product_sm90, supported
from variants.kernels.product import begin, load_partials, product, tile_index
from variants.kernels.tile_table import choose_tile, known_tile
from variants.kernels.tiles import MAX_SKINNY_ROWS, Tile, can_prefetch, descriptors


# The number of rows changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["M"])
def _norm_linear_kernel(
    x_desc, w_desc, x_ptr, residual_ptr, w_ptr, bias_ptr, partials_ptr, y_ptr, s_ptr, M, N, K, num_partials,
    x_stride, r_stride, w_stride, p_stride, y_stride, s_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of y; the first column of tiles writes s."""
    tile_m, tile_n = tile_index(M, N, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    w, w2 = begin(w_ptr, None, w_stride, tile_n, N, 0, K, PATH, BLOCK_N, BLOCK_K, PREFETCH, PDL)
    if partials_ptr is not None:
        partials = load_partials(partials_ptr, num_partials, p_stride, m, M, BLOCK_P)
    if bias_ptr is not None and PATH != "wide":
        # Beside x: behind the product it is a read from memory that nothing hides.
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
    acc, _, squares = product(
        w, w2, x_desc, w_desc, x_ptr, residual_ptr, s_ptr, None, w_ptr, None,
        x_stride, r_stride, s_stride, w_stride, tile_m, tile_n, M, N,
        0, K, PATH, BLOCK_M, BLOCK_N, BLOCK_K, partials_ptr is None, STAGES, EVEN, ONCE,
    )  # fmt: skip
    if partials_ptr is not None:
        squares = tl.sum(partials, axis=1)
    scale = tl.rsqrt(squares / K + eps)
    if PATH == "wide":
        rows, cols, y = m[:, None], n[None, :], acc * scale[:, None]
    else:
        rows, cols, y = m[None, :], n[:, None], acc * scale[None, :]
    if bias_ptr is not None:
        if PATH == "wide":
            y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
        else:
            y += bias[:, None].to(tl.float32)
    target = y_ptr + rows.to(tl.int64) * y_stride + cols
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=(rows < M) & (cols < N))


def norm_linear_triton(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launcher of `_norm_linear_kernel`; see `norm_linear`. `tile` overrides the choice by shape."""
    (m, k), n = x_TK.shape, weight_NK.shape[0]
    tile = tile or known_tile("norm_linear", x_TK, weight_NK)
    if tile is None and m > MAX_SKINNY_ROWS and supported(x_TK, weight_NK):
        return normed_product_sm90(x_TK, residual_TK, weight_NK, bias_N, eps, partials_TP, False, pdl)
    y = torch.empty((m, n), dtype=x_TK.dtype, device=x_TK.device)
    if m == 0:
        return y, x_TK if residual_TK is None else residual_TK
    tile = tile or choose_tile("norm_linear", x_TK, weight_NK)
    if partials_TP is None and tile.path != "gemv":
        x_TK, partials_TP = add_squares_triton(x_TK, residual_TK, pdl)
        residual_TK = None
    s = x_TK if residual_TK is None else torch.empty((m, k), dtype=x_TK.dtype, device=x_TK.device)
    descs = descriptors(x_TK, weight_NK, tile)
    num_partials = 0 if partials_TP is None else partials_TP.shape[1]
    _norm_linear_kernel[tile.grid(m, n)](
        *descs, x_TK, residual_TK, weight_NK, bias_N, partials_TP, y, s, m, n, k, num_partials,
        x_TK.stride(0), 0 if residual_TK is None else residual_TK.stride(0), weight_NK.stride(0),
        0 if partials_TP is None else partials_TP.stride(0), n, s.stride(0), eps,
        PATH=tile.path, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        BLOCK_P=next_power_of_2(num_partials), STAGES=tile.stages, EVEN=tile.even(k), ONCE=tile.once(k),
        PREFETCH=can_prefetch(weight_NK, tile),
        num_warps=tile.num_warps, **pdl_options(pdl and descs[0] is None),
    )  # fmt: skip
    return y, s


def norm_linear_reference(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain-PyTorch twin of `norm_linear_triton`; float64 inputs make it the oracle."""
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    s = x_TK if residual_TK is None else x_TK + residual_TK
    wide = s.to(compute)
    squares = wide.square().sum(-1, keepdim=True) if partials_TP is None else partials_TP.sum(-1, keepdim=True)
    y = F.linear(wide, weight_NK.to(compute)) * torch.rsqrt(squares / x_TK.shape[1] + eps)
    return (y if bias_N is None else y + bias_N).to(x_TK.dtype), s


def norm_linear(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [T, N], s [T, K]); the norm's weight is already in `weight_NK`, and s is x itself without a residual.

    `partials_TP` are sums of squares of x per tile (fp32, from `linear_add`): with them nothing is squared here.
    Inputs are never written; rows may be strided.
    """
    return (norm_linear_triton if x_TK.is_cuda else norm_linear_reference)(
        x_TK, residual_TK, weight_NK, bias_N, eps, partials_TP, pdl
    )
