"""Attention of one query per sequence against its pages: flash decoding with split keys.

    o = softmax(scale * q K^T) V over the last `sliding_window` (or all) of the sequence's context_len keys

Shape suffixes: B sequences, N query heads, M key and value heads, G = N / M, D head dim, P pages of a table, S
splits. A cache is [num_blocks, block_size, M, D], last dimension contiguous, block_size a power of two >= 16. A
program serves the G query heads of one key head over one of S parts of the sequence's own length; a second kernel
merges the parts by their log-sum-exp, in fixed order. Softmax and accumulation in fp32, probabilities rounded to the
dtype for the second product.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, num_sms, pdl_options, tl, triton

TILE_TOKENS = 64
# Enough programs for four a multiprocessor, each with enough keys to be worth the merge.
PROGRAMS_PER_SM = 4
MIN_SPLIT_TOKENS = 160
MAX_SPLITS = 64
LOG2_E = 1.4426950408889634


@triton.jit
def first_key(context_len, window):
    """The first position that is attended to."""
    first = 0
    if window is not None:
        first = tl.maximum(context_len - window, 0)
    return first


@triton.jit
def part_tiles(first, end, split, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """[low, high): the tiles of the positions from `first` to before `end` that part `split` has."""
    low, high = first // TILE, tl.cdiv(end, TILE)
    tiles = tl.cdiv(high - low, SPLITS)
    low += split * tiles
    return low, tl.minimum(low + tiles, high)


@triton.jit
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, lens_ptr, o_ptr, lse_ptr, G, scale_log2, window,
    q_stride_b, q_stride_h, cache_stride_block, cache_stride_pos, cache_stride_h, table_stride,
    o_stride_b, o_stride_h, o_stride_s,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (m, b, s): key head m of sequence b, part s. Scores are in base 2; with SPLITS = 1 there is no lse."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    kv_head, b, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    g, d, n = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
    heads = kv_head * G + g[:, None]
    q_mask = (g[:, None] < G) & (d[None, :] < D)
    q = tl.load(q_ptr + b * q_stride_b + heads * q_stride_h + d[None, :], mask=q_mask, other=0.0)

    context_len = tl.load(lens_ptr + b)
    first = first_key(context_len, window)
    low, high = part_tiles(first, context_len, split, TILE, SPLITS)

    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    rows = kv_head * cache_stride_h + n[:, None] * cache_stride_pos + d[None, :]
    # A tile never crosses a page: BLOCK_SIZE is a multiple of TILE. Each page number is loaded one tile ahead, so
    # that the loads of keys and values wait for nothing and the compiler can pipeline them.
    table_ptr = tables_ptr + b * table_stride
    if SPLITS == 1 and window is None:
        # The first page is known before the length is: the two loads overlap.
        page = tl.load(table_ptr)
    else:
        page = tl.load(table_ptr + low * TILE // BLOCK_SIZE, mask=low < high, other=0)
    for tile in tl.range(low, high, num_stages=STAGES):
        start = tile * TILE
        base = page.to(tl.int64) * cache_stride_block + (start % BLOCK_SIZE) * cache_stride_pos
        page = tl.load(table_ptr + (start + TILE) // BLOCK_SIZE, mask=tile + 1 < high, other=0)
        live = start + n < context_len
        mask = live[:, None]
        if D < BLOCK_D:
            mask = mask & (d[None, :] < D)
        if window is not None:
            live = live & (start + n >= first)
        k = tl.load(k_ptr + base + rows, mask=mask, other=0.0)
        v = tl.load(v_ptr + base + rows, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(live[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - new_best[:, None])
        rescale = tl.exp2(best - new_best)
        total = total * rescale + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        best = new_best

    # No key at all (a padded row, or a part past the end): zeros, weight 2^-inf.
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    o_offset = b * o_stride_b + heads * o_stride_h + split * o_stride_s + d[None, :]
    tl.store(o_ptr + o_offset, o.to(o_ptr.dtype.element_ty), mask=q_mask)
    if SPLITS > 1:
        lse = tl.where(total == 0.0, float("-inf"), best + tl.log2(total))
        lse_offset = (b * G * tl.num_programs(0) + kv_head * G + g) * SPLITS + split
        tl.store(lse_ptr + lse_offset, lse, mask=g < G)


@triton.jit
def _merge_kernel(
    parts_ptr, lse_ptr, o_ptr, N, D,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (h, b): o[b, h] = sum_s 2^(lse_s - max lse) parts_s / sum_s 2^(lse_s - max lse)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(1).to(tl.int64) * N + tl.program_id(0)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    lse = tl.load(lse_ptr + row * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    best = tl.max(lse, axis=0)
    weight = tl.where(lse == float("-inf"), 0.0, tl.exp2(lse - best))
    # An empty part is not read: its weight is zero.
    mask = (weight != 0.0)[:, None] & (d[None, :] < D)
    parts = tl.load(parts_ptr + (row * SPLITS + s[:, None]) * D + d[None, :], mask=mask, other=0.0)
    total = tl.sum(weight, axis=0)
    o = tl.sum(parts * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(o_ptr + row * D + d, o.to(o_ptr.dtype.element_ty), mask=d < D)


def num_splits(batch: int, num_kv_heads: int, max_context: int, sms: int) -> int:
    """Parts per sequence; `max_context` is what the block table can hold: in a CUDA graph the choice stays valid."""
    if max_context <= 2 * MIN_SPLIT_TOKENS:
        return 1
    wanted = PROGRAMS_PER_SM * sms // (batch * num_kv_heads)
    return max(1, min(wanted, max_context // MIN_SPLIT_TOKENS, MAX_SPLITS))


def paged_decode_attention_triton(
    q_BND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor, scale: float,
    sliding_window: int | None = None, pdl: bool = False, splits: int | None = None,
) -> Tensor:  # fmt: skip
    """Launcher of `_decode_kernel` and, with more than one split, `_merge_kernel`; see `paged_decode_attention`."""
    batch, n, d = q_BND.shape
    o = torch.empty((batch, n, d), dtype=q_BND.dtype, device=q_BND.device)
    if batch == 0:
        return o
    block_size, m = k_cache.shape[1], k_cache.shape[2]
    if splits is None:
        splits = num_splits(batch, m, block_tables_BP.shape[1] * block_size, num_sms(q_BND))
    parts, lse = o, None
    if splits > 1:
        parts = torch.empty((batch, n, splits, d), dtype=torch.float32, device=q_BND.device)
        lse = torch.empty((batch, n, splits), dtype=torch.float32, device=q_BND.device)
    block_d = max(16, next_power_of_2(d))
    _decode_kernel[(m, batch, splits)](
        q_BND, k_cache, v_cache, block_tables_BP, context_lens_B, parts, lse, n // m, scale * LOG2_E, sliding_window,
        *q_BND.stride()[:2], *k_cache.stride()[:3], block_tables_BP.stride(0),
        *parts.stride()[:2], parts.stride(2) if splits > 1 else 0,
        D=d, BLOCK_D=block_d, BLOCK_G=max(16, next_power_of_2(n // m)), BLOCK_SIZE=block_size,
        TILE=min(TILE_TOKENS, block_size), SPLITS=splits, STAGES=2, num_warps=4, **pdl_options(pdl),
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(n, batch)](
            parts, lse, o, n, d, SPLITS=splits, BLOCK_S=next_power_of_2(splits), BLOCK_D=block_d,
            num_warps=4, **pdl_options(pdl),
        )  # fmt: skip
    return o


def paged_decode_attention_reference(
    q_BND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor, scale: float,
    sliding_window: int | None = None, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Plain-PyTorch twin of `paged_decode_attention_triton`; float64 inputs make it the oracle."""
    cu_seqlens = torch.arange(q_BND.shape[0] + 1)
    return attend_pages(q_BND, k_cache, v_cache, block_tables_BP, context_lens_B, cu_seqlens, scale, sliding_window)


def attend_pages(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_B1: Tensor, scale: float, sliding_window: int | None,
) -> Tensor:  # fmt: skip
    """Causal attention of each sequence's queries against its gathered pages: what both attention twins compute."""
    o = torch.zeros(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    compute = torch.promote_types(q_TND.dtype, torch.float32)
    m = k_cache.shape[2]
    bounds = cu_seqlens_B1.tolist()
    for b, context_len in enumerate(context_lens_B.tolist()):
        begin, end = bounds[b], bounds[b + 1]
        if context_len == 0 or begin == end:
            continue
        pages = block_tables_BP[b, : cdiv(context_len, k_cache.shape[1])].long()
        k, v = (cache[pages].flatten(0, 1)[:context_len].to(compute) for cache in (k_cache, v_cache))
        q = q_TND[begin:end].to(compute).unflatten(1, (m, -1))
        scores = torch.einsum("tmgd,lmd->mgtl", q, k) * scale
        if end - begin > 1 or sliding_window is not None:
            position = torch.arange(context_len - (end - begin), context_len, device=q.device)[:, None]
            key = torch.arange(context_len, device=q.device)[None, :]
            hidden = key > position
            if sliding_window is not None:
                hidden = hidden | (key <= position - sliding_window)
            scores = scores.masked_fill(hidden, float("-inf"))
        o[begin:end] = torch.einsum("mgtl,lmd->tmgd", scores.softmax(-1), v).flatten(1, 2).to(q_TND.dtype)
    return o


def paged_decode_attention(
    q_BND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor, scale: float,
    sliding_window: int | None = None, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """One query per sequence against the first `context_lens_B[b]` keys of its pages; a length of 0 gives zeros."""
    return (paged_decode_attention_triton if q_BND.is_cuda else paged_decode_attention_reference)(
        q_BND, k_cache, v_cache, block_tables_BP, context_lens_B, scale, sliding_window, pdl
    )
