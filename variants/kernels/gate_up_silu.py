"""RMSNorm, the gate and up projections and the gated SiLU product, in one kernel.

    s = x + residual, rounded to the dtype;  r = 1 / sqrt(mean(s^2) + eps)
    g, u = r (s Wg^T) + bg, r (s Wu^T) + bu;  h = silu(g) * u

Shape suffixes: T tokens (M rows), K inputs, I intermediate size, 2I rows of the packed weight (Wg, then Wu; the
norm's weight folded in), P tiles of the kernel before. One program holds gate and up of the same columns: two weight
tiles and two accumulators share each tile of s, so the packed weight needs no interleaving. fp32 throughout, one
rounding.
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
def _gate_up_silu_kernel(
    x_desc, w_desc, x_ptr, residual_ptr, w_ptr, bias_ptr, partials_ptr, h_ptr, s_ptr, M, N, K, num_partials,
    x_stride, r_stride, w_stride, p_stride, h_stride, s_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of h (N = I); the first column of tiles writes s."""
    tile_m, tile_n = tile_index(M, N, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    up_ptr = w_ptr + tl.cast(N, tl.int64) * w_stride
    w, w2 = begin(w_ptr, up_ptr, w_stride, tile_n, N, 0, K, PATH, BLOCK_N, BLOCK_K, PREFETCH, PDL)
    if partials_ptr is not None:
        partials = load_partials(partials_ptr, num_partials, p_stride, m, M, BLOCK_P)
    gate, up, squares = product(
        w, w2, x_desc, w_desc, x_ptr, residual_ptr, s_ptr, None, w_ptr, up_ptr,
        x_stride, r_stride, s_stride, w_stride, tile_m, tile_n, M, N,
        0, K, PATH, BLOCK_M, BLOCK_N, BLOCK_K, partials_ptr is None, STAGES, EVEN, ONCE,
    )  # fmt: skip
    if partials_ptr is not None:
        squares = tl.sum(partials, axis=1)
    scale = tl.rsqrt(squares / K + eps)
    if PATH == "wide":
        rows, cols, scale = m[:, None], n[None, :], scale[:, None]
    else:
        rows, cols, scale = m[None, :], n[:, None], scale[None, :]
    gate, up = gate * scale, up * scale
    if bias_ptr is not None:
        gate += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
        up += tl.load(bias_ptr + N + cols, mask=cols < N, other=0.0).to(tl.float32)
    h = gate * tl.sigmoid(gate) * up
    target = h_ptr + rows.to(tl.int64) * h_stride + cols
    tl.store(target, h.to(h_ptr.dtype.element_ty), mask=(rows < M) & (cols < N))


def norm_gate_up_silu_triton(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launcher of `_gate_up_silu_kernel`; see `norm_gate_up_silu`. `tile` overrides the choice by shape."""
    (m, k), n = x_TK.shape, weight_2IK.shape[0] // 2
    tile = tile or known_tile("gate_up_silu", x_TK, weight_2IK)
    if tile is None and m > MAX_SKINNY_ROWS and supported(x_TK, weight_2IK):
        return normed_product_sm90(x_TK, residual_TK, weight_2IK, bias_2I, eps, partials_TP, True, pdl)
    h = torch.empty((m, n), dtype=x_TK.dtype, device=x_TK.device)
    if m == 0:
        return h, x_TK if residual_TK is None else residual_TK
    tile = tile or choose_tile("gate_up_silu", x_TK, weight_2IK, matrices=2)
    if partials_TP is None and tile.path != "gemv":
        x_TK, partials_TP = add_squares_triton(x_TK, residual_TK, pdl)
        residual_TK = None
    s = x_TK if residual_TK is None else torch.empty((m, k), dtype=x_TK.dtype, device=x_TK.device)
    descs = descriptors(x_TK, weight_2IK, tile)
    num_partials = 0 if partials_TP is None else partials_TP.shape[1]
    _gate_up_silu_kernel[tile.grid(m, n)](
        *descs, x_TK, residual_TK, weight_2IK, bias_2I, partials_TP, h, s, m, n, k, num_partials,
        x_TK.stride(0), 0 if residual_TK is None else residual_TK.stride(0), weight_2IK.stride(0),
        0 if partials_TP is None else partials_TP.stride(0), n, s.stride(0), eps,
        PATH=tile.path, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        BLOCK_P=next_power_of_2(num_partials), STAGES=tile.stages, EVEN=tile.even(k), ONCE=tile.once(k),
        PREFETCH=can_prefetch(weight_2IK, tile),
        num_warps=tile.num_warps, **pdl_options(pdl and descs[0] is None),
    )  # fmt: skip
    return h, s


def norm_gate_up_silu_reference(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain-PyTorch twin of `norm_gate_up_silu_triton`; float64 inputs make it the oracle."""
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    s = x_TK if residual_TK is None else x_TK + residual_TK
    wide = s.to(compute)
    squares = wide.square().sum(-1, keepdim=True) if partials_TP is None else partials_TP.sum(-1, keepdim=True)
    y = F.linear(wide, weight_2IK.to(compute)) * torch.rsqrt(squares / x_TK.shape[1] + eps)
    gate, up = (y if bias_2I is None else y + bias_2I).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x_TK.dtype), s


def norm_gate_up_silu(
    x_TK: Tensor, residual_TK: Tensor | None, weight_2IK: Tensor, bias_2I: Tensor | None, eps: float,
    partials_TP: Tensor | None = None, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(h [T, I], s [T, K]); arguments as in `norm_linear`, the weight's first I rows the gate's."""
    return (norm_gate_up_silu_triton if x_TK.is_cuda else norm_gate_up_silu_reference)(
        x_TK, residual_TK, weight_2IK, bias_2I, eps, partials_TP, pdl
    )
