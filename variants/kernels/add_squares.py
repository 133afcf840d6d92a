"""The residual add and the sums of squares that a normed product needs, where rows are too many to sum them in it.

    s = x + residual, rounded to the dtype;  partials[t, 0] = sum_k s[t, k]^2

Shape suffixes: T tokens (rows), K columns. fp32 sums of the rounded s. Every tile of a product would read and square
all of x again; from three rows on that costs more than this kernel.
"""

import torch
from torch import Tensor

from engine.kernels._triton import next_power_of_2, pdl_options, tl, triton


@triton.jit
def _add_squares_kernel(
    x_ptr, residual_ptr, s_ptr, partials_ptr, K, x_stride, r_stride, s_stride, BLOCK_K: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """One row a program. Without a residual s is x, and is not written."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_K)
    s = tl.load(x_ptr + row * x_stride + k, mask=k < K, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * r_stride + k, mask=k < K, other=0.0)
        s = (s.to(tl.float32) + residual.to(tl.float32)).to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + row * s_stride + k, s, mask=k < K)
    tl.store(partials_ptr + row, tl.sum(s.to(tl.float32) * s.to(tl.float32), axis=0))


def add_squares_triton(x_TK: Tensor, residual_TK: Tensor | None, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """(s [T, K], partials fp32 [T, 1]); s is x itself without a residual. Rows may be strided."""
    m, k = x_TK.shape
    s = x_TK if residual_TK is None else torch.empty((m, k), dtype=x_TK.dtype, device=x_TK.device)
    partials = torch.empty((m, 1), dtype=torch.float32, device=x_TK.device)
    if m:
        block = next_power_of_2(k)
        _add_squares_kernel[(m,)](
            x_TK, residual_TK, s, partials, k,
            x_TK.stride(0), 0 if residual_TK is None else residual_TK.stride(0), s.stride(0),
            BLOCK_K=block, num_warps=min(16, max(1, block // 512)), **pdl_options(pdl),
        )  # fmt: skip
    return s, partials
