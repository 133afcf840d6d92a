"""Kernels of which it is known whether they race: what compute-sanitizer says of ours is worth what it says of these.

The right ones grow by one thing at a time that the kernels for Hopper are made of:

    exchanged      threads trade values in shared memory, a barrier between the write and the read
    handed_over    two groups of warps (Gluon's warp_specialize) that share nothing but what Triton hands them
    one_tile       a tile by TMA, waited for at an mbarrier, read by all threads
    ring           two stages in turn; a barrier between the reads of a tile and the copy that replaces it
    specialised    the ring, filled by one warp and read by four; `ready` and `free` mbarriers between them

`planted` are `exchanged` without the barrier and `one_tile` without the wait. Their results are not looked at.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from engine.kernels._gluon import HAS_GLUON, TmaDescriptor, fence_async_shared, gl, gluon, is_hopper, mbarrier, tma

NUM_TILES, NUM_THREADS, TILE_SIZE = 5, 128, 64
THREADS = gl.constexpr(NUM_THREADS)
# A tile is a square of bf16: 128 bytes a row, TMA's widest swizzle.
SIZE = gl.constexpr(TILE_SIZE)
TILE_BYTES = gl.constexpr(2 * TILE_SIZE**2)
STAGES = gl.constexpr(2)
WORKER_REGISTERS = gl.constexpr(24)
# Triton puts barriers where its own loads and stores need them; these it does not see.
EXCHANGE = """{{
    .shared .align 4 .b32 traded[128];
    .reg .u32 mine, theirs;
    mov.u32 theirs, traded;
    mad.lo.u32 mine, $1, 4, theirs;
    mad.lo.u32 theirs, $1, -4, theirs;
    st.shared.u32 [mine], $1;
    {barrier}
    ld.shared.u32 $0, [theirs + 508];
}}"""


@gluon.jit
def _exchanged_control(y_ptr, ASM: gl.constexpr):
    """y[i] = 127 - i, written by a thread of another warp."""
    i = gl.arange(0, THREADS, gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(y_ptr + i, gl.inline_asm_elementwise(ASM, "=r,r", [i], dtype=gl.int32, is_pure=False, pack=1))


@gluon.jit
def _mark(y_ptr, first):
    i = first + gl.arange(0, THREADS, gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(y_ptr + i, 2 * THREADS - 1 - i)


@gluon.jit
def _handed_over_control(y_ptr):
    """y[i] = 255 - i, a half by each group of warps."""
    gl.warp_specialize([(_mark, (y_ptr, 0)), (_mark, (y_ptr, THREADS))], [4], [WORKER_REGISTERS])


@gluon.jit
def _allocate(x_desc, STAGES: gl.constexpr):
    """(tiles, ready, free), the barriers initialised for every proxy."""
    tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, SIZE, SIZE], x_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gl.thread_barrier()
    return tiles, ready, free


@gluon.jit
def _fetch(x_desc, tiles, ready, tile, pred):
    stage = tile % tiles.type.shape[0]
    mbarrier.expect(ready.index(stage), TILE_BYTES, pred=pred)
    tma.async_copy_global_to_shared(x_desc, [tile * SIZE, 0], ready.index(stage), tiles.index(stage), pred=pred)


@gluon.jit
def _copy_out(y_ptr, tiles, tile):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    m = tile * SIZE + gl.arange(0, SIZE, gl.SliceLayout(1, layout))
    n = gl.arange(0, SIZE, gl.SliceLayout(0, layout))
    gl.store(y_ptr + m[:, None] * SIZE + n[None, :], tiles.index(tile % tiles.type.shape[0]).load(layout))


@gluon.jit
def _one_tile_control(x_desc, y_ptr, WAITS: gl.constexpr):
    """y = the first tile of x."""
    tiles, ready, _ = _allocate(x_desc, 1)
    _fetch(x_desc, tiles, ready, 0, True)
    if WAITS:
        mbarrier.wait(ready.index(0), 0)
    _copy_out(y_ptr, tiles, 0)
    # No program may end before its copies.
    mbarrier.wait(ready.index(0), 0)


@gluon.jit
def _ring_control(x_desc, y_ptr, num_tiles):
    """y = x."""
    tiles, ready, _ = _allocate(x_desc, STAGES)
    for tile in gl.static_range(STAGES):
        _fetch(x_desc, tiles, ready, tile, True)
    for tile in range(num_tiles):
        mbarrier.wait(ready.index(tile % STAGES), (tile // STAGES) & 1)
        _copy_out(y_ptr, tiles, tile)
        gl.thread_barrier()
        _fetch(x_desc, tiles, ready, tile + STAGES, tile + STAGES < num_tiles)


@gluon.jit
def _fill(x_desc, tiles, ready, free, num_tiles):
    for tile in range(num_tiles):
        mbarrier.wait(free.index(tile % STAGES), ((tile // STAGES) & 1) ^ 1)
        _fetch(x_desc, tiles, ready, tile, True)


@gluon.jit
def _drain(y_ptr, tiles, ready, free, num_tiles):
    for tile in range(num_tiles):
        mbarrier.wait(ready.index(tile % STAGES), (tile // STAGES) & 1)
        _copy_out(y_ptr, tiles, tile)
        gl.thread_barrier()
        mbarrier.arrive(free.index(tile % STAGES), count=1)


@gluon.jit
def _specialised_control(x_desc, y_ptr, num_tiles):
    """y = x."""
    tiles, ready, free = _allocate(x_desc, STAGES)
    gl.warp_specialize(
        [(_drain, (y_ptr, tiles, ready, free, num_tiles)), (_fill, (x_desc, tiles, ready, free, num_tiles))],
        [1],
        [WORKER_REGISTERS],
    )


def exchange(barrier: bool) -> str:
    """PTX by which thread i gets what thread 127 - i wrote."""
    return EXCHANGE.format(barrier="bar.sync 0;" if barrier else "")


def _exchanged(device: torch.device, barrier: bool = True) -> bool:
    y = torch.empty(NUM_THREADS, dtype=torch.int32, device=device)
    _exchanged_control[(1,)](y, ASM=exchange(barrier), num_warps=4)
    return torch.equal(y.cpu(), torch.arange(len(y), dtype=torch.int32).flip(0))


def _handed_over(device: torch.device) -> bool:
    y = torch.empty(2 * NUM_THREADS, dtype=torch.int32, device=device)
    _handed_over_control[(1,)](y, num_warps=4)
    return torch.equal(y.cpu(), torch.arange(len(y), dtype=torch.int32).flip(0))


def _copied(device: torch.device, num_tiles: int) -> tuple[Tensor, Tensor, object]:
    """(x, y like it, x as TMA takes it)."""
    x = torch.arange(num_tiles * TILE_SIZE**2, device=device).remainder(251).bfloat16().view(-1, TILE_SIZE)
    layout = gl.NVMMASharedLayout(128, 16)
    return x, torch.zeros_like(x), TmaDescriptor.from_tensor(x, [TILE_SIZE, TILE_SIZE], layout)


def _one_tile(device: torch.device, waits: bool = True) -> bool:
    x, y, box = _copied(device, 1)
    _one_tile_control[(1,)](box, y, WAITS=waits, num_warps=4)
    return torch.equal(x, y)


def _ring(device: torch.device) -> bool:
    x, y, box = _copied(device, NUM_TILES)
    _ring_control[(1,)](box, y, NUM_TILES, num_warps=4)
    return torch.equal(x, y)


def _specialised(device: torch.device) -> bool:
    x, y, box = _copied(device, NUM_TILES)
    _specialised_control[(1,)](box, y, NUM_TILES, num_warps=4)
    return torch.equal(x, y)


RIGHT: dict[str, Callable[[torch.device], bool]] = {
    "exchanged": _exchanged, "handed_over": _handed_over, "one_tile": _one_tile, "ring": _ring,
    "specialised": _specialised,
}  # fmt: skip
PLANTED: dict[str, Callable[[torch.device], bool]] = {
    "exchanged without barrier": partial(_exchanged, barrier=False),
    "one_tile without wait": partial(_one_tile, waits=False),
}


def launch_controls(device: torch.device, planted: bool) -> None:
    """All that race, or all that do not; RuntimeError where one of these gives a wrong answer.

    Off Hopper, `exchanged` alone; without Gluon, none.
    """
    hopper = HAS_GLUON and is_hopper(torch.cuda.current_device())
    controls = {} if not HAS_GLUON else PLANTED if planted else RIGHT
    for name, control in controls.items():
        if (hopper or name.startswith("exchanged")) and not control(device) and not planted:
            raise RuntimeError(f"{name}: its answer is wrong")
