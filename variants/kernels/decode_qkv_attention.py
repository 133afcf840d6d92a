"""From the packed QKV projection of a decode step to its attention output, in one kernel.

    q = rope(norm(q));  k = rope(norm(k)) and v to slot slots[b] of their caches
    o = softmax(scale * q K^T) V over the last `sliding_window` (or all) of the context_len keys, the new one included

Shape suffixes: B sequences, O packed outputs (N query heads, then M key heads, then M value heads, of D each), P pages
of a table, or positions of the rotary tables (fp32). G = N / M. Caches and programs are as in
engine/kernels/decode_attention.py, norm and RoPE as in qkv_post.py. A program serves the G query heads of one key head
over one of S parts of the old keys; the new key stays in the registers of the last part's program, rounded as it is
stored. Each program leaves its part in an fp32 workspace and the last to arrive merges them in fixed order, so the
result does not depend on who is last. Softmax and accumulation in fp32.
"""

import torch
from torch import Tensor

from engine.kernels._triton import next_power_of_2, num_sms, pdl_options, tl, triton
from engine.kernels.decode_attention import LOG2_E, first_key, paged_decode_attention_reference, part_tiles
from variants.kernels.attention_cut import Cut, attention_cut, merge_chunk, register_limit
from variants.kernels.decode_qkv_attention_sm90 import decode_qkv_attention_sm90, hopper_takes_decode
from variants.kernels.qkv_post import (
    HEADS_PER_PROGRAM,
    load_halves,
    load_rotation,
    norm_rotate,
    qk_norm_rope_store_reference,
)
from variants.kernels.tickets import tickets
from variants.kernels.tile_table import on_trial

# Instead of -inf for the best score of no key: finite, so that nothing is infinity less infinity.
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


@triton.jit
def _columns(HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """(d, mask) of a head's elements, its halves padded apart, as RoPE needs them."""
    i = tl.arange(0, 2 * BLOCK_HALF)
    d, d_mask = i, i < 2 * HALF
    if HALF < BLOCK_HALF:
        d, d_mask = i // BLOCK_HALF * HALF + i % BLOCK_HALF, i % BLOCK_HALF < HALF
    return d, d_mask


@triton.jit
def _load_pages(table_ptr, start, high, live, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """The pages of the tile from position `start` on: one number, or where it has several, one for each position."""
    if TILE <= BLOCK_SIZE:
        pages = tl.load(table_ptr + start // BLOCK_SIZE, mask=live, other=0)
    else:
        position = start + tl.arange(0, TILE)
        pages = tl.load(table_ptr + position // BLOCK_SIZE, mask=live & (position < high), other=0)
    return pages


@triton.jit
def _load_tile(
    k_ptr, v_ptr, pages, start, low, high, d, d_mask, cache_stride_block, cache_stride_pos,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(k [TILE, D], v [TILE, D], live [TILE]) of the positions from `start` on; those outside [low, high) are zero."""
    n = tl.arange(0, TILE)
    live = (start + n >= low) & (start + n < high)
    page = pages.to(tl.int64) * cache_stride_block
    if TILE <= BLOCK_SIZE:
        # One base for the whole tile takes fewer registers than one for each position.
        base = page + (start % BLOCK_SIZE) * cache_stride_pos
        at = n[:, None] * cache_stride_pos + d[None, :]
    else:
        base = page[:, None]
        at = ((start + n) % BLOCK_SIZE)[:, None] * cache_stride_pos + d[None, :]
    mask = live[:, None] & d_mask[None, :]
    return tl.load(k_ptr + base + at, mask=mask, other=0.0), tl.load(v_ptr + base + at, mask=mask, other=0.0), live


@triton.jit
def _load_first(
    k_ptr, v_ptr, table_ptr, pages, low, high, first, end, d, d_mask, cache_stride_block, cache_stride_pos,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(k, v, live) of the first tile, those of the second where there is one stage, the pages of the tile behind."""
    k, v, live = _load_tile(
        k_ptr, v_ptr, pages, low * TILE, first, end, d, d_mask, cache_stride_block, cache_stride_pos, BLOCK_SIZE, TILE
    )
    pages = _load_pages(table_ptr, (low + 1) * TILE, end, low + 1 < high, BLOCK_SIZE, TILE)
    next_k, next_v, next_live = k, v, live
    if STAGES == 1:
        next_k, next_v, next_live = _load_tile(
            k_ptr, v_ptr, pages, (low + 1) * TILE, first, end, d, d_mask, cache_stride_block, cache_stride_pos,
            BLOCK_SIZE, TILE,
        )  # fmt: skip
        pages = _load_pages(table_ptr, (low + 2) * TILE, end, low + 2 < high, BLOCK_SIZE, TILE)
    return k, v, live, next_k, next_v, next_live, pages


@triton.jit
def _prefetch_tile(
    k_ptr, v_ptr, table_ptr, tile, high, end, cache_stride_block, cache_stride_pos,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Pull the keys and values of a tile before `high`, of its positions before `end`, into L2, a line a thread."""
    start = tile * TILE
    pages = _load_pages(table_ptr, start, end, tile < high, BLOCK_SIZE, TILE)
    LINE: tl.constexpr = 128 // (k_ptr.dtype.element_ty.primitive_bitwidth // 8)
    LINES: tl.constexpr = (BLOCK_D + LINE - 1) // LINE
    n, line = tl.arange(0, TILE)[:, None], tl.arange(0, LINES)[None, :] * LINE
    live = (start + n < end) & (line < D)
    page = pages.to(tl.int64) * cache_stride_block
    if TILE > BLOCK_SIZE:
        page = page[:, None]
    at = page + ((start + n) % BLOCK_SIZE) * cache_stride_pos + line
    for ptr in tl.static_range(2):
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
            "=r,l,r", [(k_ptr if ptr == 0 else v_ptr) + at, live.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _attend(q, k, v, live, best, total, acc, scale_log2):
    """One step of the online softmax, in base 2: (best score, sum of weights, weighted values) with a tile more."""
    scores = tl.where(live[None, :], tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - new_best[:, None])
    rescale = tl.exp2(best - new_best)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return new_best, total * rescale + tl.sum(p, axis=1), acc


@triton.jit
def _attend_rest(
    q, next_k, next_v, next_live, best, total, acc, scale_log2, k_ptr, v_ptr, table_ptr, pages, low, high,
    first, end, d, d_mask, cache_stride_block, cache_stride_pos,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The online softmax over the tiles behind `low`. With one stage the next one is always loaded already."""
    for tile in tl.range(low + 1, high, num_stages=STAGES):
        # The tile that is loaded here, and the one that is attended to.
        ahead: tl.constexpr = 1 if STAGES == 1 else 0
        loaded_k, loaded_v, loaded_live = _load_tile(
            k_ptr, v_ptr, pages, (tile + ahead) * TILE, first, end, d, d_mask, cache_stride_block, cache_stride_pos,
            BLOCK_SIZE, TILE,
        )  # fmt: skip
        pages = _load_pages(table_ptr, (tile + ahead + 1) * TILE, end, tile + ahead + 1 < high, BLOCK_SIZE, TILE)
        if STAGES == 1:
            k, v, live = next_k, next_v, next_live
            next_k, next_v, next_live = loaded_k, loaded_v, loaded_live
        else:
            k, v, live = loaded_k, loaded_v, loaded_live
        best, total, acc = _attend(q, k, v, live, best, total, acc, scale_log2)
    return best, total, acc


@triton.jit
def _begin(
    qkv_ptr, k_ptr, v_ptr, kv_head, M, G, g, j, d, d_mask, owns, has_slot,
    cos, sin, q_gamma1, q_gamma2, k_gamma1, k_gamma2, eps,
    HALF: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
):  # fmt: skip
    """(q [G, D], its products with the new key [G], the new value [D]); owner stores new key and value at their slot.

    Where the program does not own them, products and value are zero.
    """
    D: tl.constexpr = 2 * HALF
    DTYPE: tl.constexpr = k_ptr.dtype.element_ty
    new_k_ptr = qkv_ptr + (M * G + kv_head) * D
    q1, q2 = load_halves(qkv_ptr + (kv_head * G + g) * D + j, (g < G) & (j < HALF), HALF)
    # The new key is computed anew in every row of the queries' tile: no exchange between threads.
    k1, k2 = load_halves(new_k_ptr + 0 * g + j, (g >= 0) & (j < HALF) & owns, HALF)
    v = tl.load(new_k_ptr + M * D + d, mask=d_mask & owns, other=0.0)
    q1, q2 = norm_rotate(q1, q2, cos, sin, q_gamma1, q_gamma2, eps, HALF, Q_NORM)
    k1, k2 = norm_rotate(k1, k2, cos, sin, k_gamma1, k_gamma2, eps, HALF, K_NORM)
    q1, q2, k1, k2 = q1.to(DTYPE), q2.to(DTYPE), k1.to(DTYPE), k2.to(DTYPE)
    q = tl.reshape(tl.permute(tl.join(q1, q2), (0, 2, 1)), [g.shape[0], d.shape[0]])

    stored = owns & has_slot
    tl.store(k_ptr + 0 * g + j, k1, mask=(g == 0) & (j < HALF) & stored)
    tl.store(k_ptr + HALF + 0 * g + j, k2, mask=(g == 0) & (j < HALF) & stored)
    tl.store(v_ptr + d, v, mask=d_mask & stored)
    products = q1.to(tl.float32) * k1.to(tl.float32) + q2.to(tl.float32) * k2.to(tl.float32)
    return q, tl.sum(products, axis=1), v


@triton.jit
def _merge(parts_ptr, lse_ptr, o_ptr, G, D, d, d_mask, SPLITS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """o[g] = sum_s 2^lse[s, g] parts[s, g] / sum_s 2^lse[s, g], CHUNK parts at a time."""
    g = tl.arange(0, ROWS)
    best = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, d.shape[0]], tl.float32)
    for first in range(0, SPLITS, CHUNK):
        s = first + tl.arange(0, CHUNK)
        row, live = s[:, None] * G + g[None, :], (s < SPLITS)[:, None] & (g < G)[None, :]
        lse = tl.load(lse_ptr + row, mask=live, other=float("-inf"), cache_modifier=".cg")
        mask = live[:, :, None] & d_mask[None, None, :]
        parts = tl.load(parts_ptr + row[:, :, None] * D + d[None, None, :], mask=mask, other=0.0, cache_modifier=".cg")
        new_best = tl.maximum(best, tl.max(lse, axis=0))
        weight, rescale = tl.exp2(lse - new_best[None, :]), tl.exp2(best - new_best)
        total = total * rescale + tl.sum(weight, axis=0)
        acc = acc * rescale[:, None] + tl.sum(parts * weight[:, :, None], axis=0)
        best = new_best
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = (g < G)[:, None] & d_mask[None, :]
    tl.store(o_ptr + g[:, None] * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _leave(
    best, total, acc, o_ptr, parts_ptr, lse_ptr, tickets_ptr, pair, split, G, D: tl.constexpr, g, d, d_mask,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The output of a (sequence, key head) pair, or this part of it; the last of SPLITS to come merges them."""
    # No key at all (a padded row, or a part past the end): zeros, weight 2^-inf.
    o = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    o_ptr += pair * G * D
    mask = (g < G) & d_mask[None, :]
    if SPLITS == 1:
        tl.store(o_ptr + g * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=mask)
    else:
        parts_ptr += pair * SPLITS * G * D
        lse_ptr += pair * SPLITS * G
        i = tl.arange(0, g.shape[0])
        lse = tl.where(total == 0.0, float("-inf"), best + tl.log2(total))
        tl.store(parts_ptr + (split * G + g) * D + d[None, :], o, mask=mask)
        tl.store(lse_ptr + split * G + i, lse, mask=i < G)
        # Every thread's part is written before the ticket is drawn, and visible to whoever draws the last one.
        tl.debug_barrier()
        if tl.atomic_add(tickets_ptr + pair, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            _merge(parts_ptr, lse_ptr, o_ptr, G, D, d, d_mask, SPLITS, ROWS, CHUNK)
            # Ready for the next launch.
            tl.store(tickets_ptr + pair, 0)


# The width of the tables changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["table_stride"])
def _decode_qkv_attention_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr, tables_ptr, lens_ptr,
    o_ptr, parts_ptr, lse_ptr, tickets_ptr, G, eps, scale_log2, window,
    qkv_stride, cache_stride_block, cache_stride_pos, cache_stride_h, table_stride,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (m, b, s): key head m of sequence b, part s of the old keys; the last part has the new key too."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    kv_head, b, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    M = tl.num_programs(0)
    D: tl.constexpr = 2 * HALF
    BLOCK_D: tl.constexpr = 2 * BLOCK_HALF

    # What is read before the wait is complete: a kernel starts after all before it have started, and one launched
    # plainly only after all before it have ended. The step's first kernels are launched plainly: `advance`, which
    # computes lengths, positions and slots, then the embedding. Old keys and values, of earlier steps, are older
    # still, and in this step only this launch writes this layer's pages, at a position that no tile reads.
    context_len = tl.load(lens_ptr + b)
    # A padded row has length 0, a negative position and slot -1.
    position = tl.maximum(tl.load(positions_ptr + b), 0).to(tl.int64)
    slot = tl.load(slots_ptr + b).to(tl.int64)
    num_old = tl.maximum(context_len - 1, 0)
    first = first_key(context_len, window)
    low, high = part_tiles(first, num_old, split, TILE, SPLITS)
    end = tl.minimum(num_old, high * TILE)

    d, d_mask = _columns(HALF, BLOCK_HALF)
    k_ptr += kv_head * cache_stride_h
    v_ptr += kv_head * cache_stride_h
    # Each tile's page numbers are loaded one tile ahead.
    table_ptr = tables_ptr + b * table_stride
    if SPLITS == 1 and window is None and TILE <= BLOCK_SIZE:
        # The first page is known before the length is: the two loads overlap.
        pages = tl.load(table_ptr)
    else:
        pages = _load_pages(table_ptr, low * TILE, end, low < high, BLOCK_SIZE, TILE)
    g, j = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    cos, sin, q_gamma1, q_gamma2 = load_rotation(q_norm_ptr, cos_ptr, sin_ptr, position, j, HALF)
    _, _, k_gamma1, k_gamma2 = load_rotation(k_norm_ptr, cos_ptr, sin_ptr, position, j, HALF)
    k, v, live, next_k, next_v, next_live, pages = _load_first(
        k_ptr, v_ptr, table_ptr, pages, low, high, first, end, d, d_mask, cache_stride_block, cache_stride_pos,
        BLOCK_SIZE, TILE, STAGES,
    )  # fmt: skip
    if PDL:
        for tile in tl.static_range(AHEAD):
            _prefetch_tile(
                k_ptr, v_ptr, table_ptr, low + 1 + tile, high, end, cache_stride_block, cache_stride_pos,
                D, BLOCK_D, BLOCK_SIZE, TILE,
            )  # fmt: skip
        tl.extra.cuda.gdc_wait()

    owns = split == SPLITS - 1
    target = slot // BLOCK_SIZE * cache_stride_block + slot % BLOCK_SIZE * cache_stride_pos
    q, score, new_v = _begin(
        qkv_ptr + b * qkv_stride, k_ptr + target, v_ptr + target, kv_head, M, G, g, j, d, d_mask, owns, slot >= 0,
        cos, sin, q_gamma1, q_gamma2, k_gamma1, k_gamma2, eps,
        HALF, q_norm_ptr is not None, k_norm_ptr is not None,
    )  # fmt: skip
    # The softmax starts from the new key, whose weight is 2^0; a score of NaN spreads in the first step.
    new = owns & (context_len > 0)
    best = tl.where(new, score * scale_log2, LOWEST)
    total = tl.zeros([BLOCK_G], tl.float32) + new.to(tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32) + tl.where(new, new_v.to(tl.float32), 0.0)[None, :]

    best, total, acc = _attend(q, k, v, live, best, total, acc, scale_log2)
    best, total, acc = _attend_rest(
        q, next_k, next_v, next_live, best, total, acc, scale_log2, k_ptr, v_ptr, table_ptr, pages, low, high,
        first, end, d, d_mask, cache_stride_block, cache_stride_pos, BLOCK_SIZE, TILE, STAGES,
    )  # fmt: skip
    _leave(
        best, total, acc, o_ptr, parts_ptr, lse_ptr, tickets_ptr, b * M + kv_head, split, G, D, g, d, d_mask,
        SPLITS, ROWS, CHUNK,
    )  # fmt: skip


def decode_qkv_attention_triton(
    qkv_BO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_B: Tensor, slots_B: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor,
    context_lens_B: Tensor, num_heads: int, num_kv_heads: int, head_dim: int, norm_eps: float, scale: float,
    sliding_window: int | None = None, pdl: bool = False, cut: Cut | None = None,
) -> Tensor:  # fmt: skip
    """Launcher of `_decode_qkv_attention_kernel`, or of the one for Hopper; see `decode_qkv_attention`.

    `cut` overrides the choice by shape.
    """
    batch, group, half = qkv_BO.shape[0], num_heads // num_kv_heads, head_dim // 2
    if batch == 0:
        return qkv_BO.new_empty((0, num_heads, head_dim))
    block_size = k_cache.shape[1]
    max_context = block_tables_BP.shape[1] * block_size
    cut = cut or on_trial().cut
    if cut is None:
        hopper = hopper_takes_decode(qkv_BO, k_cache, num_heads, sliding_window)
        sms = num_sms(qkv_BO)
        cut = attention_cut(batch, num_heads, num_kv_heads, head_dim, max_context, block_size, sms, hopper)
    if cut.hopper:
        return decode_qkv_attention_sm90(
            qkv_BO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_B, slots_B, k_cache, v_cache, block_tables_BP,
            context_lens_B, tickets(qkv_BO.device), num_heads, norm_eps, scale, pdl, cut.splits, cut.stages, cut.ahead,
        )  # fmt: skip
    o = torch.empty((batch, num_heads, head_dim), dtype=qkv_BO.dtype, device=qkv_BO.device)
    parts, lse, arrivals = None, None, None
    if cut.splits > 1:
        parts = torch.empty((batch, num_heads * cut.splits, head_dim), dtype=torch.float32, device=qkv_BO.device)
        lse = torch.empty((batch, num_heads * cut.splits), dtype=torch.float32, device=qkv_BO.device)
        arrivals = tickets(qkv_BO.device)
    rows, block_half = next_power_of_2(group), max(8, next_power_of_2(half))
    _decode_qkv_attention_kernel[(num_kv_heads, batch, cut.splits)](
        qkv_BO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_B, slots_B, k_cache, v_cache, block_tables_BP,
        context_lens_B, o, parts, lse, arrivals, group, norm_eps, scale * LOG2_E, sliding_window,
        qkv_BO.stride(0), *k_cache.stride()[:3], block_tables_BP.stride(0),
        HALF=half, BLOCK_HALF=block_half, BLOCK_G=max(HEADS_PER_PROGRAM, rows), BLOCK_SIZE=block_size, TILE=cut.tile,
        SPLITS=cut.splits, ROWS=rows, CHUNK=merge_chunk(cut.splits, rows * 2 * block_half), STAGES=cut.stages,
        AHEAD=cut.ahead,
        num_warps=cut.num_warps, maxnreg=register_limit(rows, 2 * block_half, max_context, cut), **pdl_options(pdl),
    )  # fmt: skip
    return o


def decode_qkv_attention_reference(
    qkv_BO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_B: Tensor, slots_B: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor,
    context_lens_B: Tensor, num_heads: int, num_kv_heads: int, head_dim: int, norm_eps: float, scale: float,
    sliding_window: int | None = None, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Plain-PyTorch twin of `decode_qkv_attention_triton`; float64 inputs make it the oracle."""
    q = qk_norm_rope_store_reference(
        qkv_BO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_B, slots_B, k_cache, v_cache,
        num_heads, num_kv_heads, head_dim, norm_eps,
    )  # fmt: skip
    return paged_decode_attention_reference(q, k_cache, v_cache, block_tables_BP, context_lens_B, scale, sliding_window)


def decode_qkv_attention(
    qkv_BO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_B: Tensor, slots_B: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor,
    context_lens_B: Tensor, num_heads: int, num_kv_heads: int, head_dim: int, norm_eps: float, scale: float,
    sliding_window: int | None = None, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """o [B, N, D] of one new token a sequence, whose key and value go to their slot.

    `context_lens_B` counts the new token, whose slot is that of its last position. A padded row has length 0 and slot
    -1: it gets zeros and stores nothing. Under `pdl`, tables, lengths, positions, slots and old keys are read before
    the wait: a kernel launched without it must lie between whatever wrote them and this one.
    """
    return (decode_qkv_attention_triton if qkv_BO.is_cuda else decode_qkv_attention_reference)(
        qkv_BO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_B, slots_B, k_cache, v_cache, block_tables_BP,
        context_lens_B, num_heads, num_kv_heads, head_dim, norm_eps, scale, sliding_window, pdl,
    )  # fmt: skip
