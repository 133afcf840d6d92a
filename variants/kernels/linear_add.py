"""A linear layer, the residual add after it, and the sums of squares that the next RMSNorm needs.

    y = residual + x W^T + bias, rounded to the dtype;  partials[t, j] = sum of y[t, n]^2 over the columns n of tile j

Shape suffixes: T tokens (M rows), K inputs, N outputs, P column tiles. Accumulation in fp32; what is squared is the
rounded y, so that the next kernel norms exactly what it reads. Where outputs are few, K is split over programs: each
leaves its fp32 part in a workspace, and the last to arrive adds the parts in fixed order (no float atomics, so the
result does not depend on who is last). After quack's gemm_rms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels._triton import cdiv, pdl_options, tl, triton
from variants.kernels.product import begin, product, see_what_was_written, tile_index
from variants.kernels.tickets import MAX_TICKETS, tickets
from variants.kernels.tile_table import choose_tile
from variants.kernels.tiles import Tile, can_prefetch, descriptors


@triton.jit
def _sum_parts(acc, parts_ptr, ticket_ptr, tile, tiles, local, SPLITS: tl.constexpr):
    """(whether this program is the tile's last, the sum of all parts in order if so)."""
    size: tl.constexpr = acc.shape[0] * acc.shape[1]
    tl.store(parts_ptr + (tl.program_id(1) * tiles + tile).to(tl.int64) * size + local, acc)
    # Every thread's part is written before the ticket is drawn, and visible to whoever draws the last one.
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        acc = tl.zeros_like(acc)
        for split in range(SPLITS):
            acc += tl.load(parts_ptr + (split * tiles + tile).to(tl.int64) * size + local, cache_modifier=".cg")
        # Ready for the next launch.
        tl.store(ticket_ptr + tile, 0)
    return last, acc


# The number of rows changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["M"])
def _linear_add_kernel(
    x_desc, w_desc, x_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr, partials_ptr, parts_ptr, tickets_ptr, M, N, K,
    x_stride, w_stride, r_stride, y_stride,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of y over one of SPLITS parts of K."""
    tile_m, tile_n = tile_index(M, N, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if PATH == "wide":
        rows, cols = m[:, None], n[None, :]
    else:
        rows, cols = m[None, :], n[:, None]
    part = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS) * BLOCK_K
    k_low = tl.program_id(1) * part
    k_high = tl.minimum(k_low + part, K)
    w, w2 = begin(w_ptr, None, w_stride, tile_m, tile_n, N, k_low, k_high, PATH, BLOCK_N, BLOCK_K, PREFETCH, PDL)
    if PDL and x_desc is not None:
        see_what_was_written()
    # A small tile of the residual travels while the product is computed; a wide one would cost registers.
    mask, row = (rows < M) & (cols < N), rows.to(tl.int64)
    if PATH != "wide":
        residual = tl.load(residual_ptr + row * r_stride + cols, mask=mask, other=0.0)
    acc, _, _ = product(
        w, w2, x_desc, w_desc, x_ptr, None, None, None, w_ptr, None,
        x_stride, 0, 0, w_stride, tile_m, tile_n, M, N,
        k_low, k_high, PATH, BLOCK_M, BLOCK_N, BLOCK_K, False, STAGES, EVEN, ONCE,
    )  # fmt: skip
    done = True
    if SPLITS > 1:
        local = tl.arange(0, acc.shape[0])[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
        done, acc = _sum_parts(acc, parts_ptr, tickets_ptr, tl.program_id(0), tl.num_programs(0), local, SPLITS)
    if done:
        if PATH == "wide":
            residual = tl.load(residual_ptr + row * r_stride + cols, mask=mask, other=0.0)
        y = acc + residual.to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)
        y = y.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * y_stride + cols, y, mask=mask)
        squares = tl.where(mask, y.to(tl.float32) * y.to(tl.float32), 0.0)
        sums = tl.sum(squares, axis=1 if PATH == "wide" else 0)
        tl.store(partials_ptr + m * tl.cdiv(N, BLOCK_N) + tile_n, sums, mask=m < M)


def linear_add_triton(
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    residual_TN: Tensor,
    pdl: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Launcher of `_linear_add_kernel`; see `linear_add`. `tile` overrides the choice by shape."""
    (m, k), n = x_TK.shape, weight_NK.shape[0]
    tile = tile or choose_tile("linear_add", x_TK, weight_NK, can_split=True)
    y = torch.empty((m, n), dtype=x_TK.dtype, device=x_TK.device)
    partials = torch.empty((m, cdiv(n, tile.block_n)), dtype=torch.float32, device=x_TK.device)
    if m == 0:
        return y, partials
    grid, parts, arrivals = tile.grid(m, n), None, None
    descs = descriptors(x_TK, weight_NK, tile)
    if tile.splits > 1:
        if grid[0] > MAX_TICKETS:
            raise ValueError(f"{tile} splits {grid[0]} tiles, and at most {MAX_TICKETS} can be")
        size = grid[0] * tile.splits * tile.block_m * tile.block_n
        parts, arrivals = torch.empty(size, dtype=torch.float32, device=x_TK.device), tickets(x_TK.device)
    _linear_add_kernel[grid](
        *descs, x_TK, weight_NK, bias_N, residual_TN, y, partials, parts, arrivals, m, n, k,
        x_TK.stride(0), weight_NK.stride(0), residual_TN.stride(0), n,
        PATH=tile.path, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLITS=tile.splits,
        STAGES=tile.stages, EVEN=tile.even(k), ONCE=tile.once(k),
        PREFETCH=can_prefetch(weight_NK, tile),
        num_warps=tile.num_warps, **pdl_options(pdl and (descs[0] is None or tile.dependent)),
    )  # fmt: skip
    return y, partials


def linear_add_reference(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, residual_TN: Tensor, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """Plain-PyTorch twin of `linear_add_triton`, with one tile for all columns; float64 inputs make it the oracle."""
    compute = torch.promote_types(x_TK.dtype, torch.float32)
    bias = None if bias_N is None else bias_N.to(compute)
    y = (F.linear(x_TK.to(compute), weight_NK.to(compute), bias) + residual_TN).to(x_TK.dtype)
    return y, y.to(compute).square().sum(-1, keepdim=True)


def linear_add(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, residual_TN: Tensor, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(y [T, N], partials [T, P] fp32), both new; `norm_linear(y, ..., partials)` goes on from there."""
    return (linear_add_triton if x_TK.is_cuda else linear_add_reference)(x_TK, weight_NK, bias_N, residual_TN, pdl)
