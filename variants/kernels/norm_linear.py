"""RMSNorm and the linear layer after it, in one kernel.

    s = x + residual, rounded to the dtype;  y = (s W^T) / sqrt(mean(s^2) + eps) + bias

Shape suffixes: T tokens (M rows), K inputs, N outputs, P tiles of the kernel before. The norm's weight is folded into
W, 1/rms is applied to the fp32 accumulator (normed_product.py), and the result is rounded once: as accurate as norming
first with one rounding (2.33e-3 against 2.34e-3 relative error in bf16) and better than norming with two.
Folding and deferral: FlashNorm (Graef and others); sums of squares from the kernel before: quack's gemm_rms.
"""

from torch import Tensor

from engine.kernels._triton import tl, triton
from variants.kernels.normed_product import (
    launch_normed_product,
    normed_product_reference,
    normed_tile,
    store_tile,
)
from variants.kernels.tiles import Tile


# The number of rows changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["M"])
def _norm_linear_kernel(
    x_desc, w_desc, x_ptr, residual_ptr, w_ptr, bias_ptr, partials_ptr, y_ptr, s_ptr, M, N, K, num_partials,
    x_stride, r_stride, w_stride, p_stride, y_stride, s_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of y; the first column of tiles writes s."""
    y, _, rows, cols = normed_tile(
        x_desc, w_desc, x_ptr, residual_ptr, w_ptr, None, bias_ptr, partials_ptr, s_ptr, M, N, K, num_partials,
        x_stride, r_stride, w_stride, p_stride, s_stride, eps,
        PATH, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_P, STAGES, EVEN, ONCE, PREFETCH, PDL,
    )  # fmt: skip
    store_tile(y, y_ptr, y_stride, rows, cols, M, N)


def norm_linear_triton(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launcher of `_norm_linear_kernel`; see `norm_linear`. `tile` overrides the choice by shape."""
    return launch_normed_product(
        _norm_linear_kernel, "norm_linear", 1, x_TK, residual_TK, weight_NK, bias_N, eps, partials_TP, pdl, tile
    )


def norm_linear_reference(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain-PyTorch twin of `norm_linear_triton`; float64 inputs make it the oracle."""
    y, s = normed_product_reference(x_TK, residual_TK, weight_NK, bias_N, eps, partials_TP)
    return y.to(x_TK.dtype), s


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
