"""Causal attention of chunks of new tokens against their sequences' pages, for Hopper: FlashAttention-3's way in Gluon.

The same function as `prefill_attention.py` (see there), where `hopper_takes_prefill`. A program takes 128 queries of a
head: one warp brings tiles of 128 keys and values by TMA into two rings, two warpgroups take 64 queries each. A
warpgroup issues the scores of the next tile, then the second product of this one, and takes the exponentials of the
next tile under it; what is left of its softmax runs under the other warpgroup's products.

A ring is (tiles [stages, TILE, D], ready [stages], free [stages]): tile t of the keys or the values is fill
u = t // stages of stage t % stages. The fill completes phase u of the stage's `ready`, its release by both warpgroups
phase u of `free`; a barrier is waited for by the parity of a phase, u & 1. Fill u waits for the release of fill u - 1;
fill 0 for the parity 1, which a fresh barrier grants. No side is ever two phases ahead: a fill needs the release before
it, a release the fill before it.

A tile is fetched in parts of 64 keys and 64 dimensions: a part lies inside a page, and parts side by side make the
layout that a product over the whole tile reads. The part in which the context ends is fetched so that it *ends* with
the last key: rows before the page are out of the descriptor's bounds, and TMA writes zeros for them. So nothing that a
sequence does not own is multiplied with a probability of zero (a stale NaN would stay one), and `_hide` only has to
know how far the keys moved.
"""

from typing import Any

import torch
from torch import Tensor

from engine.kernels._gluon import (
    CONSUMER_REGISTERS,
    MAX_REGISTERS,
    PRODUCER_REGISTERS,
    TmaDescriptor,
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    runs_on_hopper,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from engine.kernels._triton import cdiv
from engine.kernels.decode_attention import LOG2_E

ROWS_PER_PROGRAM, PART_KEYS = 128, 64
BLOCK_M = gl.constexpr(ROWS_PER_PROGRAM)
# Queries of a warpgroup; keys of a tile; keys and dimensions of what one TMA copy brings (128 bytes a row).
ROWS = gl.constexpr(64)
TILE = gl.constexpr(128)
PART = gl.constexpr(PART_KEYS)
STAGES = 2


@gluon.jit
def _ring(dtype: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr):
    """A ring's shared memory: copies complete `ready`, two warpgroups arrive at `free`."""
    tiles = gl.allocate_shared_memory(dtype, [STAGES, TILE, D], gl.NVMMASharedLayout(128, 16))
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    return tiles, ready, free


@gluon.jit
def _stage(ring, tile):
    stages: gl.constexpr = ring[0].type.shape[0]
    return tile % stages


@gluon.jit
def _parity(ring, tile):
    stages: gl.constexpr = ring[0].type.shape[0]
    return (tile // stages) & 1


@gluon.jit
def _wait(ring, tile):
    """The tile, as soon as it is there."""
    stage = _stage(ring, tile)
    mbarrier.wait(ring[1].index(stage), _parity(ring, tile))
    return ring[0].index(stage)


@gluon.jit
def _release(ring, tile):
    mbarrier.arrive(ring[2].index(_stage(ring, tile)), count=1)


@gluon.jit
def _produce(
    k_desc, v_desc, k, v, table_ptr, first, second, context_len, tiles, column, BLOCK_SIZE: gl.constexpr
):  # fmt: skip
    """One warp: all tiles into the rings, in order. Page numbers are on their way a tile ahead."""
    for tile in range(tiles):
        next_first, next_second = _pages(table_ptr, tile + 1, context_len, BLOCK_SIZE)
        _fetch(k_desc, k, tile, first, second, context_len, column, BLOCK_SIZE)
        _fetch(v_desc, v, tile, first, second, context_len, column, BLOCK_SIZE)
        first, second = next_first, next_second


@gluon.jit
def _pages(table_ptr, tile, context_len, BLOCK_SIZE: gl.constexpr):
    """The pages of a tile's two parts; some page, of which no row is fetched, beyond the context."""
    first, second = tile * TILE, tile * TILE + PART
    return (
        gl.load(table_ptr + first // BLOCK_SIZE, mask=first < context_len, other=0),
        gl.load(table_ptr + second // BLOCK_SIZE, mask=second < context_len, other=0),
    )


@gluon.jit
def _fetch(desc, ring, tile, first, second, context_len, column, BLOCK_SIZE: gl.constexpr):
    """Keys or values of a tile of one head, or zeros, into the tile's stage."""
    tiles, ready, free = ring
    stages: gl.constexpr = tiles.type.shape[0]
    columns: gl.constexpr = tiles.type.shape[2] // PART
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=3)
    # A tile is stored by columns of 64, each of 128 rows: [columns, two parts] of a part's size.
    boxes = tiles._reinterpret(tiles.dtype, [stages * columns * 2, 1, PART, PART], layout)
    stage, key = _stage(ring, tile), tile * TILE
    bar = ready.index(stage)
    first_row, second_row = row_of(key, context_len, BLOCK_SIZE), row_of(key + PART, context_len, BLOCK_SIZE)
    mbarrier.wait(free.index(stage), _parity(ring, tile) ^ 1)
    mbarrier.expect(bar, TILE * columns * PART * 2)
    for c in gl.static_range(columns):
        box = (stage * columns + c) * 2
        tma.async_copy_global_to_shared(desc, [first, first_row, column + c * PART], bar, boxes.index(box))
        tma.async_copy_global_to_shared(desc, [second, second_row, column + c * PART], bar, boxes.index(box + 1))


@gluon.jit
def row_of(key, context_len, BLOCK_SIZE: gl.constexpr):
    """Where in its page the part that begins with `key` is fetched from: a part beyond the context before the page."""
    return gl.where(key < context_len, key % BLOCK_SIZE, 0) - moved_by(key, context_len)


@gluon.jit
def moved_by(key, context_len):
    """By how many rows the part that begins with `key` is fetched too early, so that it ends with the last key."""
    return gl.minimum(gl.maximum(key + PART - context_len, 0), PART)


@gluon.jit
def _consume(
    q_ptr, o_ptr, q_smem, k, v, begin, query_len, context_len, first, tiles, scale_log2, q_stride_t, o_stride_t
):  # fmt: skip
    """One warpgroup: queries `first` to `first` + 63. Both warpgroups see all tiles, so both release each."""
    D: gl.constexpr = q_smem.type.shape[1]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    io_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])

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
    scores = warpgroup_mma_wait(0, deps=(_issue_scores(q_smem, _wait(k, 0)),))
    _release(k, 0)
    e, best, _ = _softmax(_hide(scores, position, 0, context_len), best, scale_log2)
    total = _sums(e)
    p = _pack(e, q_smem.dtype)
    _wait(v, 0)

    # Tiles below `full` are visible to every row of this warpgroup.
    full = gl.minimum(gl.maximum((offset + first + 1) // TILE, 1), tiles)
    for tile in range(1, full):
        acc, p, total, best = _advance(
            acc, p, total, best, q_smem, k, v, tile, position, context_len, scale_log2, False
        )  # fmt: skip
    for tile in range(full, tiles):
        acc, p, total, best = _advance(
            acc, p, total, best, q_smem, k, v, tile, position, context_len, scale_log2, True
        )  # fmt: skip
    acc = _issue_values(acc, p, v, tiles - 1)
    inverse = gl.convert_layout(1.0 / gl.sum(total, axis=1), gl.SliceLayout(1, acc_layout))
    acc = warpgroup_mma_wait(0, deps=(acc,))
    _release(v, tiles - 1)

    # Through the queries' place (their last product is done) to whole rows.
    q_smem.store((acc * inverse[:, None]).to(q_smem.dtype))
    gl.thread_barrier()
    gl.store(o_ptr + rows * o_stride_t + d[None, :], q_smem.load(io_layout), mask=mask)


@gluon.jit
def _advance(
    acc, p, total, best, q_smem, k, v, tile, position, context_len, scale_log2, MASKED: gl.constexpr
):  # fmt: skip
    """Scores of `tile`, then the values of the tile before it; the softmax of `tile` under the latter."""
    scores = _issue_scores(q_smem, _wait(k, tile))
    acc = _issue_values(acc, p, v, tile - 1)
    scores = warpgroup_mma_wait(1, deps=(scores,))
    _release(k, tile)
    if MASKED:
        scores = _hide(scores, position, tile * TILE, context_len)
    e, best, rescale = _softmax(scores, best, scale_log2)
    total_layout: gl.constexpr = gl.SliceLayout(1, total.type.layout)
    total = total * gl.convert_layout(rescale, total_layout, assert_trivial=True)[:, None] + _sums(e)
    # Waited for here, not where they are used: ptxas moves arithmetic across a wait for products, not across a branch.
    _wait(v, tile)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    _release(v, tile - 1)
    layout: gl.constexpr = acc.type.layout
    acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, layout))[:, None]
    return acc, _pack(e, q_smem.dtype), total, best


@gluon.jit
def _issue_scores(q_smem, keys):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    zeros = gl.zeros([ROWS, TILE], gl.float32, layout)
    return warpgroup_mma(q_smem, keys.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _issue_values(acc, p, v, tile):
    """The values of a tile that was waited for. The probabilities come from the registers in which the scores came."""
    values = v[0].index(_stage(v, tile))
    low, high = (p & 0xFFFF).to(gl.int16), (p >> 16).to(gl.int16)
    e = gl.join(low.to(values.dtype, bitcast=True), high.to(values.dtype, bitcast=True)).reshape([ROWS, TILE])
    e = gl.convert_layout(e, gl.DotOperandLayout(0, acc.type.layout, 2), assert_trivial=True)
    return warpgroup_mma(e, values, acc, is_async=True)


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
    moved = moved_by(start + n // PART * PART, context_len)
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


# Scalar loads from wherever a mixed step's sequences begin: another alignment is no reason to compile again.
@gluon.jit(
    do_not_specialize=["G", "table_stride", "table_width"],
    do_not_specialize_on_alignment=["tables_ptr", "lens_ptr", "cu_seqlens_ptr"],
)
def _prefill_kernel_sm90(
    q_ptr, k_desc, v_desc, tables_ptr, lens_ptr, cu_seqlens_ptr, o_ptr, G, scale_log2,
    q_stride_t, q_stride_h, cache_stride_h, table_stride, table_width, o_stride_t, o_stride_h,
    D: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr,
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
    # Queries that are not among their own keys would wait for a tile that never comes.
    if block >= query_len or context_len < query_len:
        return
    tiles = gl.cdiv(gl.minimum(context_len - query_len + block + BLOCK_M, context_len), TILE)
    second = gl.where(context_len > PART, second, 0)

    q = gl.allocate_shared_memory(k_desc.dtype, [2, ROWS, D], gl.NVMMASharedLayout(128, 16))
    k, v = _ring(k_desc.dtype, D, STAGES), _ring(k_desc.dtype, D, STAGES)
    q_ptr += head * q_stride_h
    o_ptr += head * o_stride_h
    gl.warp_specialize(
        [
            (_consume, (
                q_ptr, o_ptr, q.index(0), k, v, begin, query_len, context_len, block, tiles, scale_log2,
                q_stride_t, o_stride_t,
            )),
            (_consume, (
                q_ptr, o_ptr, q.index(1), k, v, begin, query_len, context_len, block + ROWS, tiles, scale_log2,
                q_stride_t, o_stride_t,
            )),
            (_produce, (
                k_desc, v_desc, k, v, table_ptr, first, second, context_len, tiles, (head // G) * cache_stride_h,
                BLOCK_SIZE,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def hopper_takes_prefill(q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, sliding_window: int | None) -> bool:
    """Whether `varlen_prefill_attention_sm90` computes this; a function of device, dtypes, shapes and strides alone."""
    return (
        runs_on_hopper(q_TND)
        and q_TND.dtype in (torch.bfloat16, torch.float16) and q_TND.shape[2] in (64, 128)
        and q_TND.dtype == k_cache.dtype == v_cache.dtype and sliding_window is None
        # A part of 64 keys stays inside a page.
        and k_cache.shape[1] % PART_KEYS == 0 and k_cache.is_contiguous() and v_cache.is_contiguous()
        and q_TND.stride(2) == 1 and q_TND.stride(0) % 8 == 0 and q_TND.stride(1) % 8 == 0
    )  # fmt: skip


def cache_descriptor(cache: Tensor) -> Any:
    """[pages, positions, heads and dimensions together], copied 64 positions by 64 dimensions (128 bytes) at a time."""
    num_blocks, block_size, m, d = cache.shape
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    shape, strides = [num_blocks, block_size, m * d], [block_size * m * d, m * d, 1]
    return TmaDescriptor(cache, shape, strides, [1, PART_KEYS, PART_KEYS], layout)


def varlen_prefill_attention_sm90(
    q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables_BP: Tensor, context_lens_B: Tensor,
    cu_seqlens_B1: Tensor, max_query_len: int, scale: float, sliding_window: int | None = None,
) -> Tensor:  # fmt: skip
    """Launcher of `_prefill_kernel_sm90`; see `varlen_prefill_attention`. Only where `hopper_takes_prefill`."""
    num_tokens, n, d = q_TND.shape
    o = torch.empty((num_tokens, n, d), dtype=q_TND.dtype, device=q_TND.device)
    batch = context_lens_B.shape[0]
    if num_tokens == 0 or batch == 0:
        return o
    block_size, m = k_cache.shape[1], k_cache.shape[2]
    _prefill_kernel_sm90[(n, cdiv(max_query_len, ROWS_PER_PROGRAM), batch)](
        q_TND, cache_descriptor(k_cache), cache_descriptor(v_cache), block_tables_BP, context_lens_B, cu_seqlens_B1,
        o, n // m, scale * LOG2_E,
        *q_TND.stride()[:2], d, block_tables_BP.stride(0), block_tables_BP.shape[1], *o.stride()[:2],
        D=d, BLOCK_SIZE=block_size, STAGES=STAGES, num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return o
