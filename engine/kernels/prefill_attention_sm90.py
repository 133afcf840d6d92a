"""Causal attention of chunks of new tokens against their sequences' pages, for Hopper: FlashAttention-3's way in Gluon.

The same function as `prefill_attention.py` (see there), for the cases that `supported` names. A program takes 128
queries of a head: one warp brings tiles of 128 keys and values by TMA into two rings, two warpgroups take 64 queries
each. A warpgroup issues the scores of the next tile, then the second product of this one, and takes the exponentials of
the next tile under it; what is left of its softmax runs under the other warpgroup's products.

A tile is fetched in parts of 64 keys and 64 dimensions: a part lies inside a page, and parts side by side make the
layout that a product over the whole tile reads. The part in which the context ends is fetched so that it *ends* with
the last key: rows before the page are out of the descriptor's bounds, and TMA writes zeros for them. So nothing that a
sequence does not own is multiplied with a probability of zero (a stale NaN would stay one), and `hidden` only has to
know how far the keys moved.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.kernels._triton import INTERPRETED, cdiv, num_sms
from engine.kernels.decode_attention import LOG2_E

TensorDescriptor: Any = None
gluon: Any
gl: Any
try:
    from triton.experimental import gluon  # type: ignore[no-redef]
    from triton.experimental.gluon import language as gl  # type: ignore[no-redef]
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # type: ignore[no-redef]
except ImportError:
    from types import SimpleNamespace

    from engine.kernels._triton import triton

    gluon, gl = SimpleNamespace(jit=triton.jit), SimpleNamespace(constexpr=int)

ROWS_PER_PROGRAM, PART_KEYS = 128, 64
BLOCK_M = gl.constexpr(ROWS_PER_PROGRAM)
# Queries of a warpgroup; keys of a tile; keys and dimensions of what one TMA copy brings (128 bytes a row).
ROWS = gl.constexpr(64)
TILE = gl.constexpr(128)
PART = gl.constexpr(PART_KEYS)
# 12 warps start with 168 registers a thread (65536 / 384); then the fourth with the producer gives its own away.
MAX_REGISTERS = 168
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)


@gluon.jit
def _produce(
    k_desc, v_desc, k_smem, v_smem, k_ready, k_free, v_ready, v_free, table_ptr, first, second, context_len,
    tiles, base, column, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """One warp: tile t goes into stage t % stages, once both consumers have freed what t - stages left there (`base`
    tiles of earlier blocks count, too).

    Fill u = t // stages of a stage completes phase u of `ready` (parity u & 1), its release phase u of `free`. Fill 0
    waits for parity 1, which a fresh barrier grants; fill u for the release of fill u - 1, of parity (u - 1) & 1. No
    side is ever two phases ahead: a fill needs the release before it, a release the fill before it.
    """
    # Page numbers are on their way a tile ahead.
    second = gl.where(context_len > PART, second, 0)
    for tile in range(tiles):
        key = (tile + 1) * TILE
        next_first = _page(table_ptr, key, context_len, BLOCK_SIZE)
        next_second = _page(table_ptr, key + PART, context_len, BLOCK_SIZE)
        _fetch(k_desc, k_smem, k_ready, k_free, tile, base, first, second, context_len, column, BLOCK_SIZE)
        _fetch(v_desc, v_smem, v_ready, v_free, tile, base, first, second, context_len, column, BLOCK_SIZE)
        first, second = next_first, next_second


@gluon.jit
def _page(table_ptr, key, context_len, BLOCK_SIZE: gl.constexpr):
    """The page of a key; some page, of which no row is fetched, beyond the context."""
    return gl.load(table_ptr + key // BLOCK_SIZE, mask=key < context_len, other=0)


@gluon.jit
def _fetch(desc, smem, ready, free, tile, base, first, second, context_len, column, BLOCK_SIZE: gl.constexpr):
    """Keys or values of a tile of one head, or zeros, into the tile's stage."""
    stages: gl.constexpr = smem.type.shape[0]
    columns: gl.constexpr = smem.type.shape[2] // PART
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=3)
    # A tile is stored by columns of 64, each of 128 rows: [columns, two parts] of a part's size.
    boxes = smem._reinterpret(smem.dtype, [stages * columns * 2, 1, PART, PART], layout)
    fill, key = base + tile, tile * TILE
    stage = fill % stages
    bar = ready.index(stage)
    first_row, second_row = _row(key, context_len, BLOCK_SIZE), _row(key + PART, context_len, BLOCK_SIZE)
    mbarrier.wait(free.index(stage), ((fill // stages) & 1) ^ 1)
    mbarrier.expect(bar, TILE * columns * PART * 2)
    for c in gl.static_range(columns):
        box = (stage * columns + c) * 2
        tma.async_copy_global_to_shared(desc, [first, first_row, column + c * PART], bar, boxes.index(box))
        tma.async_copy_global_to_shared(desc, [second, second_row, column + c * PART], bar, boxes.index(box + 1))


@gluon.jit
def _row(key, context_len, BLOCK_SIZE: gl.constexpr):
    """Where in its page the part that begins with `key` is fetched from: a part beyond the context before the page."""
    return gl.where(key < context_len, key % BLOCK_SIZE, 0) - _moved(key, context_len)


@gluon.jit
def _moved(key, context_len):
    """By how many rows the part that begins with `key` is fetched too early, so that it ends with the last key."""
    return gl.minimum(gl.maximum(key + PART - context_len, 0), PART)


@gluon.jit
def _consume(
    q_ptr, o_ptr, q_smem, k_smem, v_smem, k_ready, k_free, v_ready, v_free, begin, query_len, context_len, block,
    tiles, base, scale_log2, q_stride_t, o_stride_t, W: gl.constexpr, D: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: queries block + 64 W and 63 more. Both see all tiles, so both release each. `base` came before."""
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    io_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])

    first = block + W * ROWS
    m = first + gl.arange(0, ROWS, gl.SliceLayout(1, io_layout))
    d = gl.arange(0, D, gl.SliceLayout(0, io_layout))
    mask = (m < query_len)[:, None]
    rows = (begin + m).to(gl.int64)[:, None]
    q_smem.store(gl.load(q_ptr + rows * q_stride_t + d[None, :], mask=mask, other=0.0))
    # Written by stores, read by the products' own proxy.
    fence_async_shared()
    gl.thread_barrier()

    offset = context_len - query_len
    position = offset + first + gl.arange(0, ROWS, row_layout)
    acc = gl.zeros([ROWS, D], gl.float32, acc_layout)
    best = gl.full([ROWS], float("-inf"), gl.float32, row_layout)

    # Tile 0 has no second product before it. Its key 0 is seen by every row, so `best` is finite from here on.
    k_stages: gl.constexpr = k_smem.type.shape[0]
    v_stages: gl.constexpr = v_smem.type.shape[0]
    stage = base % k_stages
    mbarrier.wait(k_ready.index(stage), (base // k_stages) & 1)
    scores = warpgroup_mma_wait(0, deps=(_issue_scores(q_smem, k_smem, stage),))
    mbarrier.arrive(k_free.index(stage), count=1)
    scores = _hide(scores, position, 0, context_len)
    e, best, _ = _softmax(scores, best, scale_log2)
    total = _sums(e)
    p = _pack(e, q_smem.dtype)
    mbarrier.wait(v_ready.index(base % v_stages), (base // v_stages) & 1)

    if PING_PONG and W == 1:
        _give_turn(0, tiles > 1)
    # Tiles below `full` are visible to every row of this warpgroup.
    full = gl.minimum(gl.maximum((offset + first + 1) // TILE, 1), tiles)
    for tile in range(1, full):
        acc, p, total, best = _advance(
            acc, p, total, best, q_smem, k_smem, v_smem, k_ready, k_free, v_ready, v_free, tile, tiles, base,
            position, context_len, scale_log2, W, False, PING_PONG,
        )  # fmt: skip
    for tile in range(full, tiles):
        acc, p, total, best = _advance(
            acc, p, total, best, q_smem, k_smem, v_smem, k_ready, k_free, v_ready, v_free, tile, tiles, base,
            position, context_len, scale_log2, W, True, PING_PONG,
        )  # fmt: skip
    last = (base + tiles - 1) % v_stages
    acc = _issue_values(acc, p, v_smem, last)
    inverse = gl.convert_layout(1.0 / gl.sum(total, axis=1), gl.SliceLayout(1, acc_layout))
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(v_free.index(last), count=1)

    # Through the queries' place (their last product is done) to whole rows.
    q_smem.store((acc * inverse[:, None]).to(q_smem.dtype))
    gl.thread_barrier()
    gl.store(o_ptr + rows * o_stride_t + d[None, :], q_smem.load(io_layout), mask=mask)


@gluon.jit
def _advance(
    acc, p, total, best, q_smem, k_smem, v_smem, k_ready, k_free, v_ready, v_free, tile, tiles, base, position,
    context_len, scale_log2, W: gl.constexpr, MASKED: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Scores of `tile`, then the values of the tile before it; the softmax of `tile` under the latter."""
    k_stages: gl.constexpr = k_smem.type.shape[0]
    v_stages: gl.constexpr = v_smem.type.shape[0]
    fill = base + tile
    stage, before = fill % k_stages, (fill - 1) % v_stages
    mbarrier.wait(k_ready.index(stage), (fill // k_stages) & 1)
    if PING_PONG:
        _take_turn(tile, W)
    scores = _issue_scores(q_smem, k_smem, stage)
    acc = _issue_values(acc, p, v_smem, before)
    if PING_PONG:
        # Warpgroup 0 has the first turn, so it needs no other after the last.
        _give_turn(1 - W, W == 0 or tile + 1 < tiles)
    scores = warpgroup_mma_wait(1, deps=(scores,))
    mbarrier.arrive(k_free.index(stage), count=1)
    if MASKED:
        scores = _hide(scores, position, tile * TILE, context_len)
    e, best, rescale = _softmax(scores, best, scale_log2)
    total_layout: gl.constexpr = gl.SliceLayout(1, total.type.layout)
    total = total * gl.convert_layout(rescale, total_layout, assert_trivial=True)[:, None] + _sums(e)
    # Waited for here, not where they are used: ptxas moves arithmetic across a wait for products, not across a branch.
    mbarrier.wait(v_ready.index(fill % v_stages), (fill // v_stages) & 1)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(v_free.index(before), count=1)
    layout: gl.constexpr = acc.type.layout
    acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, layout))[:, None]
    return acc, _pack(e, q_smem.dtype), total, best


@gluon.jit
def _take_turn(tile, W: gl.constexpr):
    """Wait until the other warpgroup has issued its products. Turns are named barriers that Triton has no use for: turn
    i + 1 of warpgroup 0 is given with turn i of 1, turn i of 1 with turn i of 0; both have tiles - 1 turns."""
    asm: gl.constexpr = "bar.sync 8, 256; mov.b32 $0, $1;" if W == 0 else "bar.sync 9, 256; mov.b32 $0, $1;"
    gl.inline_asm_elementwise(asm, "=r,r", [tile], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _give_turn(W: gl.constexpr, when):
    """Let warpgroup W issue, `when` it has one more tile."""
    asm: gl.constexpr = (
        "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p bar.arrive 8, 256; mov.b32 $0, $1; }" if W == 0 else
        "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p bar.arrive 9, 256; mov.b32 $0, $1; }"
    )  # fmt: skip
    when = gl.to_tensor(when).to(gl.int32)
    gl.inline_asm_elementwise(asm, "=r,r", [when], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _issue_scores(q_smem, k_smem, stage):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    zeros = gl.zeros([ROWS, TILE], gl.float32, layout)
    return warpgroup_mma(q_smem, k_smem.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _issue_values(acc, p, v_smem, stage):
    """The probabilities come from the registers in which the scores came."""
    dtype: gl.constexpr = v_smem.dtype
    low, high = (p & 0xFFFF).to(gl.int16).to(dtype, bitcast=True), (p >> 16).to(gl.int16).to(dtype, bitcast=True)
    e = gl.join(low, high).reshape([ROWS, TILE])
    e = gl.convert_layout(e, gl.DotOperandLayout(0, acc.type.layout, 2), assert_trivial=True)
    return warpgroup_mma(e, v_smem.index(stage), acc, is_async=True)


@gluon.jit
def _pack(e, dtype: gl.constexpr):
    """[ROWS, TILE // 2] pairs of neighbours in one register: a loop that carries halves shuffles them every time."""
    low, high = e.reshape([ROWS, TILE // 2, 2]).split()
    asm: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $2, $1;" if dtype == gl.bfloat16 else "cvt.rn.f16x2.f32 $0, $2, $1;"
    return gl.inline_asm_elementwise(asm, "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _hide(scores, position, start, context_len):
    """-inf where the key in a row of the tile is later than the query's position, or is no key."""
    n = gl.arange(0, TILE, gl.SliceLayout(0, scores.type.layout))
    moved = _moved(start + n // PART * PART, context_len)
    # A key that is none becomes later than every query.
    key = gl.where(n % PART >= moved, start + n - moved, context_len)
    return gl.where(key[None, :] <= position[:, None], scores, float("-inf"))


@gluon.jit
def _softmax(scores, best, scale_log2):
    """Probabilities against the new maximum (base 2, scaled after it), that maximum, and what the old is worth."""
    new_best = gl.maximum(best, gl.max(scores, axis=1) * scale_log2)
    return gl.exp2(scores * scale_log2 - new_best[:, None]), new_best, gl.exp2(best - new_best)


@gluon.jit
def _sums(e):
    """[ROWS, 4]: a row's sum, by the four threads that hold it. They meet only after the last tile."""
    return gl.sum(gl.sum(e.reshape([ROWS, TILE // 8, 4, 2]), axis=3), axis=1)


@gluon.jit(do_not_specialize=["G", "table_stride", "table_width"])
def _prefill_kernel_sm90(
    q_ptr, k_desc, v_desc, tables_ptr, lens_ptr, cu_seqlens_ptr, o_ptr, G, scale_log2,
    q_stride_t, q_stride_h, cache_stride_h, table_stride, table_width, o_stride_t, o_stride_h,
    D: gl.constexpr, BLOCK_SIZE: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
):  # fmt: skip
    """Program (h, i, b): 128 queries of head h of sequence b, the longest rows first."""
    head, b = gl.program_id(0), gl.program_id(2)
    # All at once, whether they will be needed or not: nothing else hides these loads.
    begin, end = gl.load(cu_seqlens_ptr + b), gl.load(cu_seqlens_ptr + b + 1)
    context_len = gl.load(lens_ptr + b)
    table_ptr = tables_ptr + b.to(gl.int64) * table_stride
    first = gl.load(table_ptr)
    second = gl.load(table_ptr + PART // BLOCK_SIZE, mask=PART // BLOCK_SIZE < table_width, other=0)
    query_len = end - begin
    block = (gl.num_programs(1) - 1 - gl.program_id(1)) * BLOCK_M
    if block >= query_len:
        return
    tiles = gl.cdiv(gl.minimum(context_len - query_len + block + BLOCK_M, context_len), TILE)
    column = (head // G) * cache_stride_h

    dtype: gl.constexpr = k_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    q_smem = gl.allocate_shared_memory(dtype, [2, ROWS, D], layout)
    k_smem = gl.allocate_shared_memory(dtype, [K_STAGES, TILE, D], layout)
    v_smem = gl.allocate_shared_memory(dtype, [V_STAGES, TILE, D], layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(K_STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
    for stage in gl.static_range(V_STAGES):
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(v_free.index(stage), count=2)

    q_head, o_head = q_ptr + head * q_stride_h, o_ptr + head * o_stride_h
    gl.warp_specialize(
        [
            (_consume, (
                q_head, o_head, q_smem.index(0), k_smem, v_smem, k_ready, k_free, v_ready, v_free, begin,
                query_len, context_len, block, tiles, 0, scale_log2, q_stride_t, o_stride_t, 0, D, PING_PONG,
            )),
            (_consume, (
                q_head, o_head, q_smem.index(1), k_smem, v_smem, k_ready, k_free, v_ready, v_free, begin,
                query_len, context_len, block, tiles, 0, scale_log2, q_stride_t, o_stride_t, 1, D, PING_PONG,
            )),
            (_produce, (
                k_desc, v_desc, k_smem, v_smem, k_ready, k_free, v_ready, v_free, table_ptr, first, second,
                context_len, tiles, 0, column, BLOCK_SIZE,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _block_of(turn, blocks, batch, n):
    """(queries before it, sequence, head) of a program's block number `turn`: the longest first, to and fro."""
    programs, program = gl.num_programs(0), gl.program_id(0)
    work = turn * programs + gl.where(turn % 2 == 0, program, programs - 1 - program)
    rest = work // n
    return (blocks - 1 - rest // batch) * BLOCK_M, rest % batch, work % n


@gluon.jit
def _lengths(cu_seqlens_ptr, lens_ptr, block, b):
    """(begin, query_len, context_len, tiles) of a block; no tiles where it has no queries (or is past the last)."""
    begin = gl.load(cu_seqlens_ptr + b, mask=block >= 0, other=0)
    end = gl.load(cu_seqlens_ptr + b + 1, mask=block >= 0, other=0)
    context_len = gl.load(lens_ptr + b, mask=block >= 0, other=0)
    tiles = gl.cdiv(gl.minimum(context_len - (end - begin) + block + BLOCK_M, context_len), TILE)
    return begin, end - begin, context_len, gl.where((block >= 0) & (block < end - begin), tiles, 0)


@gluon.jit
def _consume_all(
    q_ptr, o_ptr, q_smem, k_smem, v_smem, k_ready, k_free, v_ready, v_free, cu_seqlens_ptr, lens_ptr, turns, blocks,
    batch, n, scale_log2, q_stride_t, q_stride_h, o_stride_t, o_stride_h,
    W: gl.constexpr, D: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """A warpgroup's part of all the program's blocks; lengths are on their way a block ahead."""
    base = 0
    block, b, head = _block_of(0, blocks, batch, n)
    begin, query_len, context_len, tiles = _lengths(cu_seqlens_ptr, lens_ptr, block, b)
    for turn in range(turns):
        next_block, next_b, next_head = _block_of(turn + 1, blocks, batch, n)
        next_begin, next_query_len, next_context_len, next_tiles = _lengths(
            cu_seqlens_ptr, lens_ptr, next_block, next_b
        )
        if tiles > 0:
            _consume(
                q_ptr + head * q_stride_h, o_ptr + head * o_stride_h, q_smem, k_smem, v_smem, k_ready, k_free, v_ready,
                v_free, begin, query_len, context_len, block, tiles, base, scale_log2, q_stride_t, o_stride_t, W, D,
                PING_PONG,
            )  # fmt: skip
        base += tiles
        block, head, begin, query_len = next_block, next_head, next_begin, next_query_len
        context_len, tiles = next_context_len, next_tiles


@gluon.jit
def _produce_all(
    k_desc, v_desc, k_smem, v_smem, k_ready, k_free, v_ready, v_free, cu_seqlens_ptr, lens_ptr, tables_ptr, turns,
    blocks, batch, n, G, cache_stride_h, table_stride, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """The producer runs ahead into the next block while the consumers write this one's result."""
    base = 0
    for turn in range(turns):
        block, b, head = _block_of(turn, blocks, batch, n)
        _, _, context_len, tiles = _lengths(cu_seqlens_ptr, lens_ptr, block, b)
        table_ptr = tables_ptr + b.to(gl.int64) * table_stride
        first = _page(table_ptr, 0, context_len, BLOCK_SIZE)
        second = _page(table_ptr, PART, context_len, BLOCK_SIZE)
        _produce(
            k_desc, v_desc, k_smem, v_smem, k_ready, k_free, v_ready, v_free, table_ptr, first, second, context_len,
            tiles, base, (head // G) * cache_stride_h, BLOCK_SIZE,
        )  # fmt: skip
        base += tiles


@gluon.jit(do_not_specialize=["G", "table_stride", "blocks", "batch", "n"])
def _persistent_kernel_sm90(
    q_ptr, k_desc, v_desc, tables_ptr, lens_ptr, cu_seqlens_ptr, o_ptr, G, scale_log2,
    q_stride_t, q_stride_h, cache_stride_h, table_stride, o_stride_t, o_stride_h, blocks, batch, n,
    D: gl.constexpr, BLOCK_SIZE: gl.constexpr, K_STAGES: gl.constexpr, V_STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
):  # fmt: skip
    """One program a multiprocessor takes blocks in turn."""
    dtype: gl.constexpr = k_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    q_smem = gl.allocate_shared_memory(dtype, [2, ROWS, D], layout)
    k_smem = gl.allocate_shared_memory(dtype, [K_STAGES, TILE, D], layout)
    v_smem = gl.allocate_shared_memory(dtype, [V_STAGES, TILE, D], layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(K_STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
    for stage in gl.static_range(V_STAGES):
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(v_free.index(stage), count=2)
    turns = gl.cdiv(blocks * batch * n, gl.num_programs(0))
    gl.warp_specialize(
        [
            (_consume_all, (
                q_ptr, o_ptr, q_smem.index(0), k_smem, v_smem, k_ready, k_free, v_ready, v_free, cu_seqlens_ptr,
                lens_ptr, turns, blocks, batch, n, scale_log2, q_stride_t, q_stride_h, o_stride_t, o_stride_h, 0, D,
                PING_PONG,
            )),
            (_consume_all, (
                q_ptr, o_ptr, q_smem.index(1), k_smem, v_smem, k_ready, k_free, v_ready, v_free, cu_seqlens_ptr,
                lens_ptr, turns, blocks, batch, n, scale_log2, q_stride_t, q_stride_h, o_stride_t, o_stride_h, 1, D,
                PING_PONG,
            )),
            (_produce_all, (
                k_desc, v_desc, k_smem, v_smem, k_ready, k_free, v_ready, v_free, cu_seqlens_ptr, lens_ptr, tables_ptr,
                turns, blocks, batch, n, G, cache_stride_h, table_stride, BLOCK_SIZE,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


@cache
def _is_hopper(index: int) -> bool:
    return torch.cuda.get_device_capability(index) == (9, 0)


def supported(q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, max_seqlen_q: int, sliding_window: int | None) -> bool:
    """Whether `varlen_prefill_attention_sm90` computes this: other cases are `prefill_attention.py`'s."""
    return (
        TensorDescriptor is not None and not INTERPRETED and q_TND.is_cuda and _is_hopper(q_TND.get_device())
        and q_TND.dtype in (torch.bfloat16, torch.float16) and q_TND.shape[2] in (64, 128)
        and q_TND.dtype == k_cache.dtype == v_cache.dtype and sliding_window is None
        # A part of 64 keys stays inside a page, and up to 64 queries leave half of a program idle.
        and k_cache.shape[1] % PART_KEYS == 0 and max_seqlen_q > PART_KEYS
        and k_cache.is_contiguous() and v_cache.is_contiguous()
        and q_TND.stride(2) == 1 and q_TND.stride(0) % 8 == 0 and q_TND.stride(1) % 8 == 0
    )  # fmt: skip


def _descriptor(cache: Tensor) -> Any:
    """[pages, positions, heads and dimensions together], copied 64 positions by 64 dimensions (128 bytes) at a time."""
    num_blocks, block_size, m, d = cache.shape
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    shape, strides = [num_blocks, block_size, m * d], [block_size * m * d, m * d, 1]
    return TensorDescriptor(cache, shape, strides, [1, PART_KEYS, PART_KEYS], layout)


def varlen_prefill_attention_sm90(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_q_B1: Tensor, max_seqlen_q: int, scale: float, sliding_window: int | None = None,
    k_stages: int = 2, v_stages: int = 2, ping_pong: bool = False, persistent: bool = False,
) -> Tensor:  # fmt: skip
    """Launcher of both kernels here; see `varlen_prefill_attention`. Only what is `supported`."""
    num_tokens, n, d = q_TND.shape
    o = torch.empty((num_tokens, n, d), dtype=q_TND.dtype, device=q_TND.device)
    batch = context_lens_B.shape[0]
    if num_tokens == 0 or batch == 0:
        return o
    block_size, m = k_cache.shape[1], k_cache.shape[2]
    blocks = cdiv(max_seqlen_q, ROWS_PER_PROGRAM)
    if persistent:
        _persistent_kernel_sm90[(min(num_sms(q_TND), n * blocks * batch),)](
            q_TND, _descriptor(k_cache), _descriptor(v_cache), block_tables_BP, context_lens_B, cu_seqlens_q_B1, o,
            n // m, scale * LOG2_E, *q_TND.stride()[:2], d, block_tables_BP.stride(0), *o.stride()[:2],
            blocks, batch, n,
            D=d, BLOCK_SIZE=block_size, K_STAGES=k_stages, V_STAGES=v_stages, PING_PONG=ping_pong,
            num_warps=4, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
        return o
    _prefill_kernel_sm90[(n, blocks, batch)](
        q_TND, _descriptor(k_cache), _descriptor(v_cache), block_tables_BP, context_lens_B, cu_seqlens_q_B1, o, n // m,
        scale * LOG2_E, *q_TND.stride()[:2], d, block_tables_BP.stride(0), block_tables_BP.shape[1],
        *o.stride()[:2],
        D=d, BLOCK_SIZE=block_size, K_STAGES=k_stages, V_STAGES=v_stages, PING_PONG=ping_pong,
        num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return o
