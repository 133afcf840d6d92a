"""RMSNorm, the gate and up projections and the gated SiLU product, in one kernel.

    s = x + residual, rounded to the dtype;  r = 1 / sqrt(mean(s^2) + eps)
    g, u = r (s Wg^T) + bg, r (s Wu^T) + bu;  h = silu(g) * u

Shape suffixes: T tokens (M rows), K inputs, I intermediate size, 2I rows of the packed weight (Wg, then Wu; the
norm's weight folded in), P tiles of the kernel before. One program holds gate and up of the same columns: two weight
tiles and two accumulators share each tile of s (normed_product.py), so the packed weight needs no interleaving. fp32
throughout, one rounding.
"""

import torch.nn.functional as F
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
def _gate_up_silu_kernel(
    x_desc, w_desc, x_ptr, residual_ptr, w_ptr, bias_ptr, partials_ptr, h_ptr, s_ptr, M, N, K, num_partials,
    x_stride, r_stride, w_stride, p_stride, h_stride, s_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of h (N = I); the first column of tiles writes s."""
    up_ptr = w_ptr + tl.cast(N, tl.int64) * w_stride
    gate, up, rows, cols = normed_tile(
        x_desc, w_desc, x_ptr, residual_ptr, w_ptr, up_ptr, bias_ptr, partials_ptr, s_ptr, M, N, K, num_partials,
        x_stride, r_stride, w_stride, p_stride, s_stride, eps,
        PATH, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_P, STAGES, EVEN, ONCE, PREFETCH, PDL,
    )  # fmt: skip
    store_tile(gate * tl.sigmoid(gate) * up, h_ptr, h_stride, rows, cols, M, N)


def norm_gate_up_silu_triton(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launcher of `_gate_up_silu_kernel`; see `norm_gate_up_silu`. `tile` overrides the choice by shape."""
    return launch_normed_product(
        _gate_up_silu_kernel, "gate_up_silu", 2, x_TK, residual_TK, weight_2IK, bias_2I, eps, partials_TP, pdl, tile
    )


def norm_gate_up_silu_reference(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain-PyTorch twin of `norm_gate_up_silu_triton`; float64 inputs make it the oracle."""
    y, s = normed_product_reference(x_TK, residual_TK, weight_2IK, bias_2I, eps, partials_TP)
    gate, up = y.chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x_TK.dtype), s


def norm_gate_up_silu(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(h [T, I], s [T, K]); arguments as in `norm_linear`, the weight's first I rows the gate's."""
    return (norm_gate_up_silu_triton if x_TK.is_cuda else norm_gate_up_silu_reference)(
        x_TK, residual_TK, weight_2IK, bias_2I, eps, partials_TP, pdl
    )
