"""`decode_qkv_attention.py` for few sequences on Hopper, in Gluon: old keys and values are there before the queries.

The same function (see there for its suffixes). By TMA a program brings the first tiles of its part into two rings of
shared memory while the projection is still computed, which a kernel of plain Triton does only with what fits its
registers. The rings leave room for the product before and the one after, whose weights are there early too: with rings
twice as long a step is slower.

Each warp has its own keys of a tile and a softmax of its own, so warps meet once, after the last tile. Their states
(best score, sum of weights, weighted values), then the new key's, then those of the other parts are merged in one way,
in fixed order.

A tile is PART keys. As in engine/kernels/prefill_attention_sm90.py the last one is fetched so that it ends with the
part's last key, and rows before the page come as zeros: no slot that the sequence does not own is read, and not that of
the new key, which this launch writes.
"""

from typing import Any

import torch
from torch import Tensor

from engine.kernels._gluon import (
    fence_async_shared,
    gdc_launch_dependents,
    gdc_wait,
    gl,
    gluon,
    mbarrier,
    mma_v2,
    runs_on_hopper,
    tma,
)
from engine.kernels._triton import next_power_of_2
from engine.kernels.decode_attention import LOG2_E
from engine.kernels.prefill_attention_sm90 import PART, PART_KEYS, cache_descriptor, moved_by, row_of

# Queries of a product on the tensor cores; more heads than this do not share a key.
MAX_GROUP = 16
NUM_WARPS = 4
ROWS = gl.constexpr(MAX_GROUP)
W = gl.constexpr(NUM_WARPS)
# Instead of -inf for the best score of no key: finite, so that nothing is infinity less infinity.
LOWEST = gl.constexpr(-3.0e38)


@gluon.jit
def _ring(dtype: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """(tiles [STAGES, PART, D], ready [STAGES]): fill u = t // STAGES of stage t % STAGES completes its phase u."""
    tiles = gl.allocate_shared_memory(dtype, [STAGES, PART, D], gl.NVMMASharedLayout(128, 16))
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    return tiles, ready


@gluon.jit
def _fetch(desc, ring, tile, page, key, end, column, BLOCK_SIZE: gl.constexpr):
    """The tile's keys or values of one head, those from `key` on, into its stage."""
    tiles, ready = ring
    stages: gl.constexpr = tiles.type.shape[0]
    columns: gl.constexpr = tiles.type.shape[2] // PART
    # A tile is stored by columns of 64, which is what one copy brings.
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=3)
    boxes = tiles._reinterpret(tiles.dtype, [stages * columns, 1, PART, PART], layout)
    stage = tile % stages
    mbarrier.expect(ready.index(stage), columns * PART * PART * 2)
    for c in gl.static_range(columns):
        at = [page, row_of(key, end, BLOCK_SIZE), column + c * PART]
        tma.async_copy_global_to_shared(desc, at, ready.index(stage), boxes.index(stage * columns + c))


@gluon.jit
def _part(num_old, split, SPLITS: gl.constexpr):
    """(first key, end, tiles) of a part of the old keys."""
    part_keys = gl.cdiv(gl.cdiv(num_old, PART), SPLITS) * PART
    low = split * part_keys
    end = gl.minimum(low + part_keys, num_old)
    return low, end, gl.maximum(gl.cdiv(end - low, PART), 0)


@gluon.jit
def _page(table_ptr, key, end, BLOCK_SIZE: gl.constexpr):
    return gl.load(table_ptr + key // BLOCK_SIZE, mask=key < end, other=0)


@gluon.jit
def _fill(
    k_desc, v_desc, k, v, table_ptr, low, end, tiles, column, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Fetch the first tiles into their rings; the page of the tile behind them."""
    page = _page(table_ptr, low, end, BLOCK_SIZE)
    for tile in gl.static_range(STAGES):
        if tile < tiles:
            _fetch(k_desc, k, tile, page, low + tile * PART, end, column, BLOCK_SIZE)
            _fetch(v_desc, v, tile, page, low + tile * PART, end, column, BLOCK_SIZE)
        page = _page(table_ptr, low + (tile + 1) * PART, end, BLOCK_SIZE)
    return page


@gluon.jit
def _prefetch(
    k_ptr, v_ptr, table_ptr, key, end, cache_stride_block, cache_stride_pos, D: gl.constexpr, BLOCK_SIZE: gl.constexpr
):  # fmt: skip
    """Pull the tile from `key` on into L2, a line of 128 bytes a thread."""
    LINES: gl.constexpr = D // PART
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32 // LINES, LINES], [W, 1], [1, 0])
    asm: gl.constexpr = "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }"
    n = key + gl.arange(0, PART, gl.SliceLayout(1, layout))
    line = gl.arange(0, LINES, gl.SliceLayout(0, layout)) * PART
    page = _page(table_ptr, key, end, BLOCK_SIZE).to(gl.int64) * cache_stride_block
    at = page + (n % BLOCK_SIZE * cache_stride_pos)[:, None] + line[None, :]
    live = ((n < end)[:, None] & (line >= 0)[None, :]).to(gl.int32)
    for ptr in gl.static_range(2):
        gl.inline_asm_elementwise(
            asm, "=r,l,r", [(k_ptr if ptr == 0 else v_ptr) + at, live], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def _gammas(norm_ptr, j, otherwise, HALF: gl.constexpr):
    """Both halves of a norm's weight; without one they go unused."""
    first, second = otherwise, otherwise
    if norm_ptr is not None:
        first = gl.load(norm_ptr + j).to(gl.float32)[None, :]
        second = gl.load(norm_ptr + HALF + j).to(gl.float32)[None, :]
    return first, second


@gluon.jit
def _norm_rotate(x_ptr, mask, cos, sin, gamma1, gamma2, eps, HALF: gl.constexpr, NORM: gl.constexpr):
    """Both halves of heads, normed if NORM and rotated, rounded: as in qkv_post.py, to the bit."""
    dtype: gl.constexpr = x_ptr.dtype.element_ty
    x1 = gl.load(x_ptr, mask=mask, other=0.0).to(gl.float32)
    x2 = gl.load(x_ptr + HALF, mask=mask, other=0.0).to(gl.float32)
    if NORM:
        scale = gl.rsqrt(gl.sum(x1 * x1 + x2 * x2, axis=1) / (2 * HALF) + eps)[:, None]
        x1, x2 = x1 * scale * gamma1, x2 * scale * gamma2
    return (x1 * cos - x2 * sin).to(dtype), (x2 * cos + x1 * sin).to(dtype)


@gluon.jit
def _new_token(
    q_ptr, new_ptr, k_ptr, G, g, j, cos, sin, q_gamma1, q_gamma2, k_gamma1, k_gamma2, eps, owns, stored,
    HALF: gl.constexpr, Q_NORM: gl.constexpr, K_NORM: gl.constexpr,
):  # fmt: skip
    """(queries [ROWS, D], their products with the new key [ROWS]) in shared memory; the owner stores that key."""
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    q1, q2 = _norm_rotate(q_ptr + g * 2 * HALF + j, (g < G) & (j >= 0), cos, sin, q_gamma1, q_gamma2, eps, HALF, Q_NORM)
    # The new key is computed anew in every row of the queries' tile: no exchange between threads.
    k1, k2 = _norm_rotate(
        new_ptr + 0 * g + j, (g >= 0) & (j >= 0) & owns, cos, sin, k_gamma1, k_gamma2, eps, HALF, K_NORM
    )
    q_smem = gl.allocate_shared_memory(dtype, [ROWS, 2 * HALF], gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))
    q_smem.slice(0, HALF, dim=1).store(q1)
    q_smem.slice(HALF, HALF, dim=1).store(q2)
    scores = gl.allocate_shared_memory(gl.float32, [ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    scores.store(gl.sum(q1.to(gl.float32) * k1.to(gl.float32) + q2.to(gl.float32) * k2.to(gl.float32), axis=1))
    gl.store(k_ptr + 0 * g + j, k1, mask=(g == 0) & (j >= 0) & stored)
    gl.store(k_ptr + HALF + 0 * g + j, k2, mask=(g == 0) & (j >= 0) & stored)
    return q_smem, scores


@gluon.jit
def _attend(
    q_smem, k, v, k_desc, v_desc, table_ptr, page, low, end, tiles, column, scale_log2, BLOCK_SIZE: gl.constexpr
):  # fmt: skip
    """Each warp's state over its keys of all tiles: best [W, ROWS], total [W, ROWS], acc [W, ROWS, D]."""
    STAGES: gl.constexpr = k[0].type.shape[0]
    D: gl.constexpr = k[0].type.shape[2]
    KEYS: gl.constexpr = PART // W
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])
    by_row: gl.constexpr = gl.SliceLayout(2, mma)
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    q = gl.expand_dims(q_smem.load(gl.SliceLayout(0, left)), 0).broadcast_to([W, ROWS, D])
    warp = gl.arange(0, W, gl.SliceLayout(1, by_row))
    n = gl.arange(0, KEYS, gl.SliceLayout(0, gl.SliceLayout(1, mma)))
    within = gl.expand_dims(warp[:, None], 2) * KEYS + gl.expand_dims(n[None, :], 1)

    best = gl.full([W, ROWS], LOWEST, gl.float32, by_row)
    total = gl.zeros([W, ROWS], gl.float32, by_row)
    acc = gl.zeros([W, ROWS, D], gl.float32, mma)
    for tile in range(tiles):
        stage, phase, key = tile % STAGES, (tile // STAGES) & 1, low + tile * PART
        mbarrier.wait(k[1].index(stage), phase)
        keys = k[0].index(stage).reshape([W, KEYS, D]).permute((0, 2, 1)).load(right)
        scores = mma_v2(q, keys, gl.zeros([W, ROWS, KEYS], gl.float32, mma)) * scale_log2
        scores = gl.where(within >= moved_by(key, end), scores, float("-inf"))
        new_best = gl.maximum(best, gl.max(scores, axis=2))
        p = gl.exp2(scores - gl.expand_dims(new_best, 2))
        rescale = gl.exp2(best - new_best)
        total = total * rescale + gl.sum(p, axis=2)
        best = new_best
        mbarrier.wait(v[1].index(stage), phase)
        values = v[0].index(stage).reshape([W, KEYS, D]).load(right)
        p = gl.convert_layout(p.to(values.dtype), left)
        acc = mma_v2(p, values, acc * gl.expand_dims(rescale, 2))
        if tile + STAGES < tiles:
            # Every warp has read the stage.
            gl.thread_barrier()
            _fetch(k_desc, k, tile + STAGES, page, key + STAGES * PART, end, column, BLOCK_SIZE)
            _fetch(v_desc, v, tile + STAGES, page, key + STAGES * PART, end, column, BLOCK_SIZE)
        page = _page(table_ptr, key + (STAGES + 1) * PART, end, BLOCK_SIZE)
    return best, total, acc


@gluon.jit
def _meet(best, total, acc, memory, layout: gl.constexpr, RESULTS: gl.constexpr):
    """The warps' states as one, of the first RESULTS rows; `memory` is large enough and nobody reads it any more."""
    D: gl.constexpr = acc.type.shape[2]
    by_state: gl.constexpr = gl.SliceLayout(2, layout)
    if RESULTS < ROWS:
        # A thread has rows r and r + 8.
        best, _other_best = best.reshape([W, 2, RESULTS]).permute((0, 2, 1)).split()
        total, _other_total = total.reshape([W, 2, RESULTS]).permute((0, 2, 1)).split()
        acc, _other_acc = acc.reshape([W, 2, RESULTS, D]).permute((0, 2, 3, 1)).split()
    # fp32 in place of tiles of two bytes.
    gl.static_assert(W * RESULTS * 4 <= memory.type.shape[0] * PART * 2, "the ring is too short")
    accs = memory._reinterpret(gl.float32, [W, RESULTS, D], gl.SwizzledSharedLayout(4, 1, 8, [2, 1, 0]))
    states = gl.allocate_shared_memory(gl.float32, [2, W, RESULTS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    gl.thread_barrier()
    accs.store(acc)
    states.index(0).store(best)
    states.index(1).store(total)
    gl.thread_barrier()
    return _merged(states.index(0).load(by_state), states.index(1).load(by_state), accs.load(layout))


@gluon.jit
def _merged(best, total, acc):
    """States [S, R] and values [S, R, D] over different keys as those over all of them."""
    top = gl.max(best, axis=0)
    weight = gl.exp2(best - top[None, :])
    return top, gl.sum(total * weight, axis=0), gl.sum(acc * gl.expand_dims(weight, 2), axis=0)


@gluon.jit
def _with_new(best, total, acc, new, score, new_v):
    """The state with the new key, whose sum of weights is one, where there is one."""
    layout: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    score = gl.where(new, score, LOWEST)
    top = gl.maximum(best, score)
    weight, new_weight = gl.exp2(best - top), gl.where(new, gl.exp2(score - top), 0.0)
    acc *= gl.convert_layout(weight, layout)[:, None]
    acc += gl.convert_layout(new_weight, layout)[:, None] * new_v.to(gl.float32)[None, :]
    return top, total * weight + new_weight, acc


@gluon.jit
def _store(o_ptr, total, acc, at, live):
    """acc / total, zeros of no key at all (a padded row)."""
    total = gl.convert_layout(gl.where(total == 0.0, 1.0, total), gl.SliceLayout(1, acc.type.layout))
    gl.store(o_ptr + at, (acc / total[:, None]).to(o_ptr.dtype.element_ty), mask=live)


@gluon.jit
def _leave(
    best, total, acc, o_ptr, parts_ptr, states_ptr, ticket_ptr, split, G, at, live, r,
    SPLITS: gl.constexpr, STATES: gl.constexpr,
):  # fmt: skip
    """This part's state for the last of SPLITS to come, which merges them all and stores the output."""
    D: gl.constexpr = acc.type.shape[1]
    RESULTS: gl.constexpr = acc.type.shape[0]
    layout: gl.constexpr = gl.BlockedLayout([STATES, 1, 4], [1, 128 // D, D // 4], [1, W, 1], [2, 1, 0])
    gl.store(parts_ptr + split * G * D + at, acc, mask=live)
    gl.store(states_ptr + (split * G + r) * 2, best, mask=r < G)
    gl.store(states_ptr + (split * G + r) * 2 + 1, total, mask=r < G)
    # Every thread's part is written before the ticket is drawn, and visible to whoever draws the last one.
    gl.thread_barrier()
    if gl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        s = gl.arange(0, STATES, gl.SliceLayout(1, gl.SliceLayout(2, layout)))
        i = gl.arange(0, RESULTS, gl.SliceLayout(0, gl.SliceLayout(2, layout)))
        d = gl.arange(0, D, gl.SliceLayout(0, gl.SliceLayout(1, layout)))
        state_at = s[:, None] * G + i[None, :]
        mine = (s < SPLITS)[:, None] & (i < G)[None, :]
        parts_at = gl.expand_dims(state_at, 2) * D + gl.expand_dims(d[None, :], 1)
        of_mine = gl.expand_dims(mine, 2) & gl.expand_dims((d >= 0)[None, :], 1)
        parts = gl.load(parts_ptr + parts_at, mask=of_mine, other=0.0, cache_modifier=".cg")
        bests = gl.load(states_ptr + state_at * 2, mask=mine, other=LOWEST, cache_modifier=".cg")
        totals = gl.load(states_ptr + state_at * 2 + 1, mask=mine, other=0.0, cache_modifier=".cg")
        _, whole_total, whole = _merged(bests, totals, parts)
        _store(o_ptr, whole_total, gl.convert_layout(whole, acc.type.layout, assert_trivial=True), at, live)
        # Ready for the next launch.
        gl.store(ticket_ptr, 0)


# The width of the tables changes from step to step and must not cause a new compilation.
@gluon.jit(do_not_specialize=["G", "table_stride"])
def _decode_qkv_attention_kernel_sm90(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_desc, v_desc, k_ptr, v_ptr,
    tables_ptr, lens_ptr, o_ptr, parts_ptr, states_ptr, tickets_ptr, G, eps, scale_log2,
    qkv_stride, cache_stride_block, cache_stride_pos, cache_stride_h, table_stride,
    D: gl.constexpr, BLOCK_SIZE: gl.constexpr, SPLITS: gl.constexpr, STAGES: gl.constexpr, AHEAD: gl.constexpr,
    STATES: gl.constexpr, RESULTS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Program (m, b, s): key head m of sequence b, part s of the old keys; the last part has the new key too."""
    if PDL:
        gdc_launch_dependents()
    HALF: gl.constexpr = D // 2
    kv_head, b, split = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    M = gl.num_programs(0)

    # What may be read before the wait is what decode_qkv_attention.py names.
    context_len = gl.load(lens_ptr + b)
    position = gl.maximum(gl.load(positions_ptr + b), 0).to(gl.int64)
    slot = gl.load(slots_ptr + b).to(gl.int64)
    low, end, tiles = _part(gl.maximum(context_len - 1, 0), split, SPLITS)

    column = kv_head * cache_stride_h
    k_ptr += column
    v_ptr += column
    table_ptr = tables_ptr + b.to(gl.int64) * table_stride
    k, v = _ring(k_desc.dtype, D, STAGES), _ring(k_desc.dtype, D, STAGES)
    fence_async_shared()
    page = _fill(k_desc, v_desc, k, v, table_ptr, low, end, tiles, column, BLOCK_SIZE, STAGES)

    # Rows of 16 heads, as in qkv_post.py: tiles of one shape sum in one order.
    heads: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HALF, HALF // 8], [W, 1], [1, 0])
    g = gl.arange(0, ROWS, gl.SliceLayout(1, heads))[:, None]
    j = gl.arange(0, HALF, gl.SliceLayout(0, heads))
    cos, sin = gl.load(cos_ptr + position * HALF + j)[None, :], gl.load(sin_ptr + position * HALF + j)[None, :]
    q_gamma1, q_gamma2 = _gammas(q_norm_ptr, j, cos, HALF)
    k_gamma1, k_gamma2 = _gammas(k_norm_ptr, j, cos, HALF)
    j = j[None, :]
    if PDL:
        for i in gl.static_range(AHEAD):
            key = low + (STAGES + i) * PART
            _prefetch(k_ptr, v_ptr, table_ptr, key, end, cache_stride_block, cache_stride_pos, D, BLOCK_SIZE)
        gdc_wait()

    warps: gl.constexpr = gl.BlockedLayout([W, 1, 4], [1, 128 // D, D // 4], [1, W, 1], [2, 1, 0])
    results: gl.constexpr = gl.SliceLayout(0, warps)
    by_result: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, warps))
    d = gl.arange(0, D, gl.SliceLayout(0, results))
    owns = split == SPLITS - 1
    # A padded row has none, and nothing of its projection may count.
    new = owns & (context_len > 0)
    qkv_ptr += b.to(gl.int64) * qkv_stride
    new_ptr = qkv_ptr + (M * G + kv_head) * D
    new_v = gl.load(new_ptr + M * D + d, mask=(d >= 0) & new, other=0.0)
    target = slot // BLOCK_SIZE * cache_stride_block + slot % BLOCK_SIZE * cache_stride_pos
    stored = owns & (slot >= 0)
    q_smem, new_scores = _new_token(
        qkv_ptr + kv_head * G * D, new_ptr, k_ptr + target, G, g, j, cos, sin, q_gamma1, q_gamma2, k_gamma1, k_gamma2,
        eps, owns, stored, HALF, q_norm_ptr is not None, k_norm_ptr is not None,
    )  # fmt: skip
    gl.store(v_ptr + target + d, new_v, mask=(d >= 0) & stored)

    best, total, acc = _attend(
        q_smem, k, v, k_desc, v_desc, table_ptr, page, low, end, tiles, column, scale_log2, BLOCK_SIZE
    )
    best, total, acc = _meet(best, total, acc, k[0], warps, RESULTS)
    score = new_scores.slice(0, RESULTS, dim=0).load(by_result) * scale_log2
    best, total, acc = _with_new(best, total, acc, new, score, new_v)

    i = gl.arange(0, RESULTS, gl.SliceLayout(1, results))[:, None]
    at, live = i * D + d[None, :], (i < G) & (d >= 0)[None, :]
    pair = b.to(gl.int64) * M + kv_head
    o_ptr += pair * G * D
    if SPLITS == 1:
        _store(o_ptr, total, acc, at, live)
    else:
        _leave(
            best, total, acc, o_ptr, parts_ptr + pair * SPLITS * G * D, states_ptr + pair * SPLITS * G * 2,
            tickets_ptr + pair, split, G, at, live, gl.arange(0, RESULTS, by_result), SPLITS, STATES,
        )  # fmt: skip


def hopper_takes_decode(qkv_BO: Tensor, k_cache: Tensor, num_heads: int, sliding_window: int | None) -> bool:
    """Whether `decode_qkv_attention_sm90` computes this; a function of device, dtypes, shapes and strides alone."""
    block_size, num_kv_heads, head_dim = k_cache.shape[1:]
    return (
        runs_on_hopper(qkv_BO)
        and qkv_BO.dtype in (torch.bfloat16, torch.float16) and qkv_BO.dtype == k_cache.dtype
        and head_dim in (64, 128) and num_heads // num_kv_heads <= MAX_GROUP
        # A tile stays inside a page.
        and block_size % PART_KEYS == 0 and k_cache.is_contiguous() and sliding_window is None
    )  # fmt: skip


def decode_qkv_attention_sm90(
    qkv_BO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_B: Tensor, slots_B: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor,
    context_lens_B: Tensor, tickets: Tensor, num_heads: int, norm_eps: float, scale: float, pdl: bool,
    splits: int, stages: int, ahead: int,
) -> Tensor:  # fmt: skip
    """Launcher of `_decode_qkv_attention_kernel_sm90`; see `decode_qkv_attention`. Only where `hopper_takes_decode`.

    `tickets` has one zero for each of B * M pairs. Rings have `stages` tiles, which the warps' states must fit into
    too; `ahead` more are pulled into L2 before the wait.
    """
    batch, (block_size, num_kv_heads, head_dim) = qkv_BO.shape[0], k_cache.shape[1:]
    group = num_heads // num_kv_heads
    o = torch.empty((batch, num_heads, head_dim), dtype=qkv_BO.dtype, device=qkv_BO.device)
    parts, states = None, None
    if splits > 1:
        parts = torch.empty((batch, num_heads * splits, head_dim), dtype=torch.float32, device=qkv_BO.device)
        states = torch.empty((batch, num_heads * splits, 2), dtype=torch.float32, device=qkv_BO.device)
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    _decode_qkv_attention_kernel_sm90[(num_kv_heads, batch, splits)](
        qkv_BO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_B, slots_B,
        cache_descriptor(k_cache), cache_descriptor(v_cache), k_cache, v_cache, block_tables_BP, context_lens_B,
        o, parts, states, tickets, group, norm_eps, scale * LOG2_E,
        qkv_BO.stride(0), *k_cache.stride()[:3], block_tables_BP.stride(0),
        D=head_dim, BLOCK_SIZE=block_size, SPLITS=splits, STAGES=stages, AHEAD=ahead,
        STATES=next_power_of_2(splits), RESULTS=max(MAX_GROUP // 2, next_power_of_2(group)), PDL=pdl,
        num_warps=NUM_WARPS, **options,
    )  # fmt: skip
    return o
