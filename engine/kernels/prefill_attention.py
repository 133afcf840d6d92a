"""Causal attention of chunks of new tokens against their sequences' pages (the new tokens' own keys stored before).

    o_i = softmax(scale * q_i K^T) V over keys j <= p_i (and j > p_i - sliding_window)
    p_i = context_len - query_len + i

Shape suffixes: T tokens of all sequences, B sequences, N query heads, M key and value heads, D head dim, P pages of a
table. A cache is [num_blocks, block_size, M, D], last dimension contiguous, block_size a power of two >= 16.
FlashAttention-2's loop: online softmax, tiles that are hidden for every row skipped, only the last tiles masked.
Softmax and accumulation in fp32, probabilities rounded to the dtype for the second product.
Long chunks on Hopper go to `prefill_attention_sm90.py`.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, tl, triton
from engine.kernels.decode_attention import LOG2_E, attend_pages
from engine.kernels.prefill_attention_sm90 import hopper_takes_prefill, varlen_prefill_attention_sm90

# Measured on an H200 (docs/03_attention.md): Hopper's own kernel is slower at 512 queries and faster at 2048.
MIN_HOPPER_QUERIES = 1024


@triton.jit
def _load_tile(ptrs, key, context_len, d, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Keys or values; zeros beyond the context and the head dim. No mask where none is needed."""
    if MASKED:
        x = tl.load(ptrs, mask=(key < context_len)[:, None] & (d < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        x = tl.load(ptrs, mask=(d < D)[None, :], other=0.0)
    else:
        x = tl.load(ptrs)
    return x


@triton.jit
def _attend_tiles(
    q, acc, total, best, k_ptr, v_ptr, table_ptr, rows, position, low, high, context_len, scale_log2, window,
    cache_stride_block, cache_stride_pos,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax over the key tiles [low, high); MASKED where some key of a tile is hidden from some row."""
    n, d = tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    # A tile never crosses a page; each page number is loaded one tile ahead (as in decode_attention.py).
    page = tl.load(table_ptr + low * TILE // BLOCK_SIZE, mask=low < high, other=0)
    for tile in tl.range(low, high, num_stages=STAGES):
        start = tile * TILE
        base = page.to(tl.int64) * cache_stride_block + (start % BLOCK_SIZE) * cache_stride_pos
        page = tl.load(table_ptr + (start + TILE) // BLOCK_SIZE, mask=tile + 1 < high, other=0)
        key = start + n
        k = _load_tile(k_ptr + base + rows, key, context_len, d, D, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            live = key[None, :] <= position[:, None]
            if window is not None:
                live = live & (key[None, :] > position[:, None] - window)
            scores = tl.where(live, scores, float("-inf"))
        # Scaling after the maximum leaves one fused multiply-add an element, not a product and a difference.
        new_best = tl.maximum(best, tl.max(scores, axis=1) * scale_log2)
        shift = new_best
        if MASKED and window is not None:
            # A row may see none of the first tiles: -inf minus -inf is not a number.
            shift = tl.where(new_best == float("-inf"), 0.0, new_best)
        p = tl.exp2(scores * scale_log2 - shift[:, None])
        rescale = tl.exp2(best - shift)
        total = total * rescale + tl.sum(p, axis=1)
        v = _load_tile(v_ptr + base + rows, key, context_len, d, D, BLOCK_D, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        best = new_best
    return acc, total, best


@triton.jit
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, lens_ptr, cu_seqlens_ptr, o_ptr, G, scale_log2, window,
    q_stride_t, q_stride_h, cache_stride_block, cache_stride_pos, cache_stride_h, table_stride, o_stride_t, o_stride_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Program (h, i, b): BLOCK_M queries of head h of sequence b, the longest rows first."""
    head, b = tl.program_id(0), tl.program_id(2)
    begin = tl.load(cu_seqlens_ptr + b)
    query_len = tl.load(cu_seqlens_ptr + b + 1) - begin
    block = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    if block < query_len:
        context_len = tl.load(lens_ptr + b)
        m, d, n = block + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
        q_rows = (begin + m).to(tl.int64)[:, None]
        q_mask = (m < query_len)[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + q_rows * q_stride_t + head * q_stride_h + d[None, :], mask=q_mask, other=0.0)
        offset = context_len - query_len
        position = offset + m
        rows = (head // G) * cache_stride_h + n[:, None] * cache_stride_pos + d[None, :]
        table_ptr = tables_ptr + b.to(tl.int64) * table_stride

        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        end = tl.cdiv(tl.minimum(offset + block + BLOCK_M, context_len), TILE)
        # Tiles below `full` are visible to every row; a window hides keys at both ends, so there all tiles are masked.
        full = (offset + block + 1) // TILE
        if window is not None:
            full = tl.maximum(offset + block + 1 - window, 0) // TILE
        else:
            acc, total, best = _attend_tiles(
                q, acc, total, best, k_ptr, v_ptr, table_ptr, rows, position, 0, full, context_len, scale_log2, window,
                cache_stride_block, cache_stride_pos, D, BLOCK_D, BLOCK_SIZE, TILE, False, STAGES,
            )  # fmt: skip
        acc, total, best = _attend_tiles(
            q, acc, total, best, k_ptr, v_ptr, table_ptr, rows, position, full, end, context_len, scale_log2, window,
            cache_stride_block, cache_stride_pos, D, BLOCK_D, BLOCK_SIZE, TILE, True, STAGES,
        )  # fmt: skip
        o = (acc / total[:, None]).to(o_ptr.dtype.element_ty)
        tl.store(o_ptr + q_rows * o_stride_t + head * o_stride_h + d[None, :], o, mask=q_mask)


def prefill_tile(max_query_len: int, d: int, block_size: int) -> tuple[int, int, int, int]:
    """(queries a program, keys a tile, warps, stages): a tile stays inside a page; wide heads get fewer keys a tile."""
    keys = min(128 if d <= 64 else 64, block_size)
    return (128, keys, 8, 3) if d <= 64 < max_query_len else (64, keys, 4, 3)


def varlen_prefill_attention_triton(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_B1: Tensor, max_query_len: int, scale: float, sliding_window: int | None = None,
) -> Tensor:  # fmt: skip
    """Launcher of `_prefill_kernel`; see `varlen_prefill_attention`."""
    num_tokens, n, d = q_TND.shape
    o = torch.empty((num_tokens, n, d), dtype=q_TND.dtype, device=q_TND.device)
    batch = context_lens_B.shape[0]
    if num_tokens == 0 or batch == 0:
        return o
    block_size, m = k_cache.shape[1], k_cache.shape[2]
    block_m, keys, num_warps, stages = prefill_tile(max_query_len, d, block_size)
    _prefill_kernel[(n, cdiv(max_query_len, block_m), batch)](
        q_TND, k_cache, v_cache, block_tables_BP, context_lens_B, cu_seqlens_B1, o, n // m,
        scale * LOG2_E, sliding_window,
        *q_TND.stride()[:2], *k_cache.stride()[:3], block_tables_BP.stride(0), *o.stride()[:2],
        D=d, BLOCK_D=max(16, next_power_of_2(d)), BLOCK_SIZE=block_size, BLOCK_M=block_m, TILE=keys, STAGES=stages,
        num_warps=num_warps,
    )  # fmt: skip
    return o


def varlen_prefill_attention_reference(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_B1: Tensor, max_query_len: int, scale: float, sliding_window: int | None = None,
) -> Tensor:  # fmt: skip
    """Plain-PyTorch twin of `varlen_prefill_attention_triton`; float64 inputs make it the oracle."""
    return attend_pages(q_TND, k_cache, v_cache, block_tables_BP, context_lens_B, cu_seqlens_B1, scale, sliding_window)


def varlen_prefill_attention(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_B1: Tensor, max_query_len: int, scale: float, sliding_window: int | None = None,
) -> Tensor:  # fmt: skip
    """Queries `cu_seqlens_B1[b]` to `[b + 1]` against the first `context_lens_B[b]` keys of sequence b.

    Which kernel runs depends on device, dtypes, shapes and strides alone, so a captured graph keeps its choice.
    """
    attend = varlen_prefill_attention_triton if q_TND.is_cuda else varlen_prefill_attention_reference
    if max_query_len >= MIN_HOPPER_QUERIES and hopper_takes_prefill(q_TND, k_cache, v_cache, sliding_window):
        attend = varlen_prefill_attention_sm90
    return attend(
        q_TND, k_cache, v_cache, block_tables_BP, context_lens_B, cu_seqlens_B1, max_query_len, scale, sliding_window
    )
