"""RMSNorm inside a product of many rows, for Hopper, in Gluon: alone, or with gate, up and SiLU.

    y = r (s W^T) + b,   or with SILU h = silu(g) * u of the two halves g, u of y;   r = 1 / sqrt(mean(s^2) + eps)

The same as `norm_linear.py` and `gate_up_silu.py` (see there) behind a kernel that left s and its sums of squares.
Shape suffixes: T tokens (M rows), K inputs, N outputs, C = N columns of the result, or N / 2 with SILU.

Programs are persistent. One warp brings 128 rows of s and BLOCK_N of the weight, 64 columns at a time, by TMA into a
ring of stages; two warpgroups multiply. They take turns with tiles of their own (TURNS), so that one rounds and stores
while the other multiplies, or share tiles twice as wide, 64 rows each, which take a quarter less from L2. With SILU a
stage holds gate and up of the same outputs one above the other: one product gives both, and a thread has both halves of
what it combines. Results leave by TMA, which clips what lies beyond the matrix, while the next tile's products run.

Step i of a program is fill u = i // STAGES of stage i % STAGES: it completes phase u of the stage's `ready`, and its
release phase u of `free` (see engine/kernels/prefill_attention_sm90.py for why parities suffice). A warpgroup whose
turn has not come would be phases ahead of the stages it waits for; so it waits for its turn first.
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
from engine.kernels._triton import cdiv, num_sms
from variants.kernels.add_squares import add_squares_triton

ROWS_OF_TILE, STEP_COLUMNS = 128, 64
# Rows of the weight in a tile, of warpgroups that take turns and that share.
TURNS_N, SHARED_N = 128, 256
MIN_SHARED_ROWS, MIN_SHARED_K = 2048, 4096
# Of 227 KiB: barriers need a few.
SHARED_BYTES = 226 * 1024
BLOCK_M = gl.constexpr(ROWS_OF_TILE)
# Columns of a step: 128 bytes a row, TMA's widest swizzle.
STEP = gl.constexpr(STEP_COLUMNS)
# Tiles of rows that share weights in L2 while they are computed side by side.
GROUP = gl.constexpr(8)
LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def tile_at(index, M, C, BLOCK_C: gl.constexpr):
    """(first row, first column) of a tile of the result: down the rows of a group, then the next columns."""
    tiles_m, tiles_c = gl.cdiv(M, BLOCK_M), gl.cdiv(C, BLOCK_C)
    group = index // (GROUP * tiles_c)
    rows = gl.minimum(tiles_m - group * GROUP, GROUP)
    within = index - group * GROUP * tiles_c
    return (group * GROUP + within % rows) * BLOCK_M, within // rows * BLOCK_C


@gluon.jit
def produce(s_desc, w_desc, s, w, ready, free, tiles, M, C, K, SILU: gl.constexpr):
    """One warp: all steps of all tiles, in order."""
    stages: gl.constexpr = w.type.shape[0]
    block_n: gl.constexpr = w.type.shape[1]
    parts: gl.constexpr = 2 if SILU else 1
    block_c: gl.constexpr = block_n // parts
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    # The same memory, cut as it is copied: all rows at once, gate and up apart.
    s_boxes = s._reinterpret(s.dtype, [stages, BLOCK_M, STEP], layout)
    w_boxes = w._reinterpret(w.dtype, [stages * parts, block_c, STEP], layout)
    step = 0
    for index in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile_at(index, M, C, block_c)
        for k in range(0, K, STEP):
            stage = step % stages
            bar = ready.index(stage)
            mbarrier.wait(free.index(stage), ((step // stages) & 1) ^ 1)
            mbarrier.expect(bar, (BLOCK_M + block_n) * STEP * 2)
            tma.async_copy_global_to_shared(s_desc, [row, k], bar, s_boxes.index(stage))
            for part in gl.static_range(parts):
                box = w_boxes.index(stage * parts + part)
                tma.async_copy_global_to_shared(w_desc, [part * C + column, k], bar, box)
            step += 1


@gluon.jit
def multiply(s, w, ready, free, turn, acc, step, steps, mine, PART: gl.constexpr, TURNS: gl.constexpr):
    """(a warpgroup's rows of a tile, the step after): `steps` steps from `step` on, in its turn, the `mine`-th."""
    stages: gl.constexpr = w.type.shape[0]
    if TURNS:
        mbarrier.wait(turn.index(PART), (mine & 1) ^ (1 - PART))
    for k in range(steps):
        stage = step % stages
        mbarrier.wait(ready.index(stage), (step // stages) & 1)
        x = s.index(stage if TURNS else stage * 2 + PART)
        acc = warpgroup_mma(x, w.index(stage).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=(acc,))
        # So the step before is done.
        mbarrier.arrive(free.index((step + stages - 1) % stages), count=1, pred=k > 0)
        step += 1
    if TURNS:
        mbarrier.arrive(turn.index(1 - PART), count=1)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(free.index((step + stages - 1) % stages), count=1)
    return acc, step


@gluon.jit
def _consume(
    y_desc, squares_ptr, bias_ptr, s, w, y, ready, free, turn, tiles, M, C, K, eps,
    PART: gl.constexpr, TURNS: gl.constexpr, SILU: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its rows of every tile of the program, or every second tile."""
    block_n: gl.constexpr = w.type.shape[1]
    rows: gl.constexpr = y.type.shape[0]
    block_c: gl.constexpr = y.type.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_n, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_c, 16])
    first: gl.constexpr = 0 if TURNS else PART * rows
    steps = gl.cdiv(K, STEP)
    step, mine = (PART * steps if TURNS else 0), 0
    start = gl.program_id(0) + (PART * gl.num_programs(0) if TURNS else 0)
    for index in range(start, tiles, gl.num_programs(0) * (2 if TURNS else 1)):
        row, column = tile_at(index, M, C, block_c)
        row += first
        m = row + gl.arange(0, rows, gl.SliceLayout(1, out_layout))
        squares = gl.load(squares_ptr + m, mask=m < M, other=0.0)
        acc = gl.zeros([rows, block_n], gl.float32, layout)
        acc, step = multiply(s, w, ready, free, turn, acc, step, steps, mine, PART, TURNS)
        scale = gl.rsqrt(squares / K + eps)[:, None]
        if SILU:
            gate, up = acc.reshape([rows, 2, block_c]).permute((0, 2, 1)).split()
            gate = normed(gl.convert_layout(gate, out_layout, assert_trivial=True), scale, bias_ptr, column, C)
            up_bias = bias_ptr
            if bias_ptr is not None:
                up_bias += C
            up = normed(gl.convert_layout(up, out_layout, assert_trivial=True), scale, up_bias, column, C)
            out = gate * up / (1.0 + gl.exp2(-LOG2_E * gate))
        else:
            out = normed(acc, scale, bias_ptr, column, C)
        # What the last tile left there is out.
        tma.store_wait(0)
        gl.thread_barrier()
        y.store(out.to(y.dtype))
        fence_async_shared()
        gl.thread_barrier()
        tma.async_copy_shared_to_global(y_desc, [row, column], y)
        if TURNS:
            step += steps
            mine += 1
    tma.store_wait(0)


@gluon.jit
def normed(acc, scale, bias_ptr, column, C):
    if bias_ptr is not None:
        n = column + gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))
        bias = gl.load(bias_ptr + n, mask=n < C, other=0.0)
        y = acc * scale + bias.to(gl.float32)[None, :]
    else:
        y = acc * scale
    return y


@gluon.jit
def ring(dtype: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_C: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):
    """(s, w, ready, free) of all stages, and of both warpgroups (y, turn); the barriers are ready to be waited for."""
    rows: gl.constexpr = BLOCK_M if TURNS else BLOCK_M // 2
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    s = gl.allocate_shared_memory(dtype, [STAGES * (BLOCK_M // rows), rows, STEP], layout)
    w = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, STEP], layout)
    y = gl.allocate_shared_memory(dtype, [2, rows, BLOCK_C], layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1 if TURNS else 2)
    for part in gl.static_range(2):
        mbarrier.init(turn.index(part), count=1)
    return s, w, y, ready, free, turn


@gluon.jit
def _work(
    s_desc, w_desc, y_desc, squares_ptr, bias_ptr, M, C, K, eps,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr, SILU: gl.constexpr,
):  # fmt: skip
    """Tiles program_id, program_id + num_programs, ... of y [M, C]."""
    block_c: gl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    s, w, y, ready, free, turn = ring(s_desc.dtype, BLOCK_N, block_c, STAGES, TURNS)
    tiles = gl.cdiv(M, BLOCK_M) * gl.cdiv(C, block_c)
    gl.warp_specialize(
        [
            (_consume, (
                y_desc, squares_ptr, bias_ptr, s, w, y.index(0), ready, free, turn, tiles, M, C, K, eps, 0, TURNS, SILU
            )),
            (_consume, (
                y_desc, squares_ptr, bias_ptr, s, w, y.index(1), ready, free, turn, tiles, M, C, K, eps, 1, TURNS, SILU
            )),
            (produce, (s_desc, w_desc, s, w, ready, free, tiles, M, C, K, SILU)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


# Two names for it: a trace tells the fusions apart by them.
@gluon.jit(do_not_specialize=["M"])
def _norm_linear_kernel_sm90(
    s_desc, w_desc, y_desc, squares_ptr, bias_ptr, M, C, K, eps,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """See `_work`."""
    _work(s_desc, w_desc, y_desc, squares_ptr, bias_ptr, M, C, K, eps, BLOCK_N, STAGES, TURNS, False)


@gluon.jit(do_not_specialize=["M"])
def _gate_up_silu_kernel_sm90(
    s_desc, w_desc, y_desc, squares_ptr, bias_ptr, M, C, K, eps,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """See `_work`."""
    _work(s_desc, w_desc, y_desc, squares_ptr, bias_ptr, M, C, K, eps, BLOCK_N, STAGES, TURNS, True)


def hopper_takes_product(s_TK: Tensor, weight_NK: Tensor) -> bool:
    """Whether `normed_product_sm90` computes this; a function of device, dtype, shapes and strides alone."""
    return (
        runs_on_hopper(s_TK) and s_TK.dtype in (torch.bfloat16, torch.float16) and weight_NK.is_contiguous()
        # TMA's units are 16 bytes, in the result too.
        and s_TK.stride(1) == 1 and s_TK.stride(0) % 8 == 0 and s_TK.shape[1] % 8 == 0 and weight_NK.shape[0] % 16 == 0
    )  # fmt: skip


def share_tiles(m: int, k: int, silu: bool) -> bool:
    """Whether the warpgroups share tiles and do not take turns.

    For a short and wide product there is one tile of rows, and few of columns. With many rows and columns it is L2 that
    sets the pace; without SILU the wider results leave too little room for stages.
    """
    return silu and (m <= ROWS_OF_TILE or (m >= MIN_SHARED_ROWS and k >= MIN_SHARED_K))


def result_box(block_n: int, silu: bool) -> tuple[int, int]:
    """Rows and columns of the result that a warpgroup stores at once."""
    return ROWS_OF_TILE if block_n == TURNS_N else ROWS_OF_TILE // 2, block_n // 2 if silu else block_n


def num_stages(block_n: int, silu: bool) -> int:
    """As many as shared memory holds beside two results, of elements of two bytes."""
    rows, columns = result_box(block_n, silu)
    return (SHARED_BYTES // 2 - 2 * rows * columns) // ((ROWS_OF_TILE + block_n) * STEP_COLUMNS)


def normed_product_sm90(
    x_TK: Tensor, residual_TK: Tensor | None, weight_NK: Tensor, bias_N: Tensor | None, eps: float,
    partials_TP: Tensor | None, silu: bool, pdl: bool = False, block_n: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [T, C], s [T, K]); arguments as in `norm_linear`. Only where `hopper_takes_product`.

    `block_n` overrides the choice by shape.
    """
    s, squares = stream_and_squares(x_TK, residual_TK, partials_TP, pdl)
    (m, k), n = s.shape, weight_NK.shape[0]
    block_n = block_n or (SHARED_N if share_tiles(m, k, silu) else TURNS_N)
    columns, (box_rows, block_c) = n // 2 if silu else n, result_box(block_n, silu)
    y = torch.empty((m, columns), dtype=s.dtype, device=s.device)
    if m == 0:
        return y, s
    tiles = cdiv(m, ROWS_OF_TILE) * cdiv(columns, block_c)
    kernel = _gate_up_silu_kernel_sm90 if silu else _norm_linear_kernel_sm90
    kernel[(min(tiles, num_sms(s)),)](
        boxes(s, ROWS_OF_TILE, STEP_COLUMNS), boxes(weight_NK, block_c, STEP_COLUMNS),
        boxes(y, box_rows, block_c), squares, bias_N, m, columns, k, eps,
        BLOCK_N=block_n, STAGES=num_stages(block_n, silu), TURNS=block_n == TURNS_N, num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return y, s


def stream_and_squares(
    x_TK: Tensor, residual_TK: Tensor | None, partials_TP: Tensor | None, pdl: bool
) -> tuple[Tensor, Tensor]:
    """(s [T, K], its sums of squares, one for each row)."""
    if residual_TK is not None or partials_TP is None:
        return add_squares_triton(x_TK, residual_TK, pdl)
    return x_TK, partials_TP.sum(1, keepdim=True) if partials_TP.shape[1] > 1 else partials_TP


def boxes(x: Tensor, rows: int, columns: int) -> Any:
    """A descriptor of a matrix that is copied so many rows and columns at a time."""
    return TmaDescriptor.from_tensor(x, [rows, columns], gl.NVMMASharedLayout(128, 16))
