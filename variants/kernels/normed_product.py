"""RMSNorm inside a product: what `norm_linear.py` and `gate_up_silu.py` have in common.

    s = x + residual, rounded to the dtype;  y = (s W^T) / sqrt(mean(s^2) + eps) + bias

Shape suffixes: T tokens (M rows), K inputs, N outputs, O rows of the packed weight (N, or twice as many with a second
weight below the first), P tiles of the kernel before. The norm's weight is folded into W when the weights are prepared,
and 1/rms is applied to the fp32 accumulator. Where no kernel before has summed the squares, the product does with one
or two rows, and `add_squares` with more.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels._triton import next_power_of_2, pdl_options, tl, triton
from variants.kernels.add_squares import add_squares_triton
from variants.kernels.normed_product_sm90 import hopper_takes_product, normed_product_sm90
from variants.kernels.product import begin, load_partials, product, see_what_was_written, tile_index
from variants.kernels.tile_table import choose_tile, known_tile
from variants.kernels.tiles import MAX_SKINNY_ROWS, Tile, can_prefetch, descriptors


@triton.jit
def normed_tile(
    x_desc, w_desc, x_ptr, residual_ptr, w_ptr, w2_ptr, bias_ptr, partials_ptr, s_ptr, M, N, K, num_partials,
    x_stride, r_stride, w_stride, p_stride, s_stride, eps,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """(y, y of the second weight, their rows, their columns) of this program's tile, fp32.

    The first column of tiles writes s. The second weight's bias lies N elements behind the first one's.
    """
    tile_m, tile_n = tile_index(M, N, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    w, w2 = begin(w_ptr, w2_ptr, w_stride, tile_m, tile_n, N, 0, K, PATH, BLOCK_N, BLOCK_K, PREFETCH, PDL)
    if PDL and x_desc is not None:
        see_what_was_written()
    if partials_ptr is not None:
        partials = load_partials(partials_ptr, num_partials, p_stride, m, M, BLOCK_P)
    if bias_ptr is not None and PATH != "wide":
        # Beside x: behind the product it is a read from memory that nothing hides.
        bias, bias2 = _load_biases(bias_ptr, w2_ptr, n, N)
    y, y2, squares = product(
        w, w2, x_desc, w_desc, x_ptr, residual_ptr, s_ptr, None, w_ptr, w2_ptr,
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
    y, y2 = y * scale, y2 * scale
    if bias_ptr is not None:
        if PATH == "wide":
            bias, bias2 = _load_biases(bias_ptr, w2_ptr, cols, N)
        else:
            bias, bias2 = bias[:, None], bias2[:, None]
        y, y2 = y + bias.to(tl.float32), y2 + bias2.to(tl.float32)
    return y, y2, rows, cols


@triton.jit
def _load_biases(bias_ptr, w2_ptr, n, N):
    """The biases of both weights at columns n; without a second weight the first one's twice."""
    bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
    bias2 = bias
    if w2_ptr is not None:
        bias2 = tl.load(bias_ptr + N + n, mask=n < N, other=0.0)
    return bias, bias2


@triton.jit
def store_tile(y, y_ptr, y_stride, rows, cols, M, N):
    """Rounded, and only what lies inside of [M, N]."""
    target = y_ptr + rows.to(tl.int64) * y_stride + cols
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=(rows < M) & (cols < N))


def launch_normed_product(
    kernel: Any, op: str, matrices: int, x_TK: Tensor, residual_TK: Tensor | None, weight_OK: Tensor,
    bias_O: Tensor | None, eps: float, partials_TP: Tensor | None, pdl: bool, tile: Tile | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [T, N], s [T, K]) by `kernel`, or by the one for Hopper where rows are many and the table has no tile.

    `op` is the kernel's name in the table, `matrices` how many the packed weight holds; `tile` overrides the choice by
    shape.
    """
    (m, k), n = x_TK.shape, weight_OK.shape[0] // matrices
    tile = tile or known_tile(op, x_TK, weight_OK)
    if tile is None and m > MAX_SKINNY_ROWS and hopper_takes_product(x_TK, weight_OK):
        return normed_product_sm90(x_TK, residual_TK, weight_OK, bias_O, eps, partials_TP, matrices == 2, pdl)
    y = torch.empty((m, n), dtype=x_TK.dtype, device=x_TK.device)
    if m == 0:
        return y, x_TK if residual_TK is None else residual_TK
    tile = tile or choose_tile(op, x_TK, weight_OK, matrices)
    if partials_TP is None and tile.path != "gemv":
        x_TK, partials_TP = add_squares_triton(x_TK, residual_TK, pdl)
        residual_TK = None
    s = x_TK if residual_TK is None else torch.empty((m, k), dtype=x_TK.dtype, device=x_TK.device)
    descs = descriptors(x_TK, weight_OK, tile)
    num_partials = 0 if partials_TP is None else partials_TP.shape[1]
    kernel[tile.grid(m, n)](
        *descs, x_TK, residual_TK, weight_OK, bias_O, partials_TP, y, s, m, n, k, num_partials,
        x_TK.stride(0), 0 if residual_TK is None else residual_TK.stride(0), weight_OK.stride(0),
        0 if partials_TP is None else partials_TP.stride(0), n, s.stride(0), eps,
        PATH=tile.path, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        BLOCK_P=next_power_of_2(num_partials), STAGES=tile.stages, EVEN=tile.even(k), ONCE=tile.once(k),
        PREFETCH=can_prefetch(weight_OK, tile),
        num_warps=tile.num_warps, **pdl_options(pdl and (descs[0] is None or tile.dependent)),
    )  # fmt: skip
    return y, s


def normed_product_reference(
    x_TK: Tensor, residual_TK: Tensor | None, weight_OK: Tensor, bias_O: Tensor | None, eps: float,
    partials_TP: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [T, O], not yet rounded, s [T, K]) in plain PyTorch, of all rows of the packed weight."""
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    s = x_TK if residual_TK is None else x_TK + residual_TK
    wide = s.to(compute)
    squares = wide.square().sum(-1, keepdim=True) if partials_TP is None else partials_TP.sum(-1, keepdim=True)
    y = F.linear(wide, weight_OK.to(compute)) * torch.rsqrt(squares / x_TK.shape[1] + eps)
    return y if bias_O is None else y + bias_O, s
