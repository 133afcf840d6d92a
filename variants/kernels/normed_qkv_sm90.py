"""RMSNorm, the QKV product of many rows and all that lies between it and attention, for Hopper, in Gluon.

    y = r (s W^T) + b;   q = rope(norm(y_q)) to a tensor, k = rope(norm(y_k)) and v = y_v to their slots

The product of `normed_product_sm90.py`, whose warpgroups take turns, with what `qkv_post.py` does at its end: a tile of
128 columns is a head of 128 elements, so a warpgroup holds whole heads and norms and rotates them in its registers, not
yet rounded, while the other one multiplies. Queries leave by TMA. Keys and values are read back from shared memory a
row to sixteen threads, and each row goes to its slot.

Shape suffixes: T tokens (M rows), K inputs, O = (N + 2 KV) * D packed outputs of N query heads and KV key and value
heads, P positions of the rotary tables (fp32).
"""

import torch
from torch import Tensor

from engine.kernels._gluon import (
    CONSUMER_REGISTERS,
    MAX_REGISTERS,
    PRODUCER_REGISTERS,
    fence_async_shared,
    gl,
    gluon,
    tma,
)
from engine.kernels._triton import cdiv, num_sms
from variants.kernels.normed_product_sm90 import (
    BLOCK_M,
    ROWS_OF_TILE,
    STEP,
    STEP_COLUMNS,
    TURNS_N,
    boxes,
    hopper_takes_product,
    multiply,
    normed,
    num_stages,
    produce,
    ring,
    stream_and_squares,
    tile_at,
)

HEAD_DIM = TURNS_N
HEAD = gl.constexpr(HEAD_DIM)
HALF = gl.constexpr(HEAD_DIM // 2)


@gluon.jit
def _split(x):
    """The left and the right half of the columns: a thread has both, so nothing moves."""
    rows: gl.constexpr = x.shape[0]
    columns: gl.constexpr = x.shape[1] // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])
    left, right = x.reshape([rows, 2, columns]).permute((0, 2, 1)).split()
    return gl.convert_layout(left, layout, assert_trivial=True), gl.convert_layout(right, layout, assert_trivial=True)


@gluon.jit
def _join(left, right):
    """The inverse of `_split`."""
    columns: gl.constexpr = 2 * left.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])
    x = gl.join(left, right).permute((0, 2, 1)).reshape([left.shape[0], columns])
    return gl.convert_layout(x, layout, assert_trivial=True)


@gluon.jit
def _norm_rotate(x1, x2, gamma_ptr, cos_ptr, sin_ptr, position, eps):
    """Both halves of a head a row, normed where there is a weight and rotated."""
    d = gl.arange(0, HALF, gl.SliceLayout(0, x1.type.layout))
    if gamma_ptr is not None:
        scale = gl.rsqrt(gl.sum(x1 * x1 + x2 * x2, axis=1) / HEAD + eps)[:, None]
        x1 = x1 * scale * gl.load(gamma_ptr + d).to(gl.float32)[None, :]
        x2 = x2 * scale * gl.load(gamma_ptr + HALF + d).to(gl.float32)[None, :]
    at = position[:, None] * HALF + d[None, :]
    cos, sin = gl.load(cos_ptr + at), gl.load(sin_ptr + at)
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@gluon.jit
def _store_rows(
    y, cache_ptr, slots_ptr, row, M, cache_stride_block, cache_stride_pos, BLOCK_SIZE: gl.constexpr
):  # fmt: skip
    """A head of the tile's rows to their slots; a row that is padding, or past the end, nowhere."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    m = row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, layout))
    d = gl.arange(0, HEAD, gl.SliceLayout(0, layout))
    slot = gl.load(slots_ptr + m, mask=m < M, other=-1).to(gl.int64)
    at = slot // BLOCK_SIZE * cache_stride_block + slot % BLOCK_SIZE * cache_stride_pos
    gl.store(cache_ptr + at[:, None] + d[None, :], y.load(layout), mask=(slot >= 0)[:, None])


@gluon.jit
def _consume(
    q_desc, squares_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr,
    s, w, y, ready, free, turn, tiles, M, C, K, N, KV, eps, cache_stride_block, cache_stride_pos, cache_stride_h,
    BLOCK_SIZE: gl.constexpr, PART: gl.constexpr,
):  # fmt: skip
    """One warpgroup: every second tile of the program."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD, 16])
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    steps = gl.cdiv(K, STEP)
    step, mine = PART * steps, 0
    for index in range(gl.program_id(0) + PART * gl.num_programs(0), tiles, gl.num_programs(0) * 2):
        row, column = tile_at(index, M, C, HEAD)
        head = column // HEAD
        m = row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, half_layout))
        squares = gl.load(squares_ptr + m, mask=m < M, other=0.0)
        acc = gl.zeros([BLOCK_M, HEAD], gl.float32, layout)
        acc, step = multiply(s, w, ready, free, turn, acc, step, steps, mine, PART, True)
        scale = gl.rsqrt(squares / K + eps)[:, None]
        x1, x2 = _split(acc)
        x1 = normed(x1, scale, bias_ptr, column, C)
        x2 = normed(x2, scale, bias_ptr, column + HALF, C)
        if head < N + KV:
            gamma_ptr = q_norm_ptr
            if q_norm_ptr is not None:
                if head >= N:
                    gamma_ptr = k_norm_ptr
            # A padded row has a negative position. Read now: the product has no register for it.
            position = gl.maximum(gl.load(positions_ptr + m, mask=m < M, other=0), 0)
            x1, x2 = _norm_rotate(x1, x2, gamma_ptr, cos_ptr, sin_ptr, position, eps)
        out = _join(x1, x2)
        # What the last tile left there is out.
        tma.store_wait(0)
        gl.thread_barrier()
        y.store(out.to(y.dtype))
        fence_async_shared()
        gl.thread_barrier()
        if head < N:
            tma.async_copy_shared_to_global(q_desc, [row, column], y)
        else:
            cache_ptr = k_ptr
            if head >= N + KV:
                cache_ptr = v_ptr
            _store_rows(
                y, cache_ptr + (head - N) % KV * cache_stride_h, slots_ptr, row, M, cache_stride_block,
                cache_stride_pos, BLOCK_SIZE,
            )  # fmt: skip
        step += steps
        mine += 1
    tma.store_wait(0)


# Its name is of both rungs that it stands for: a trace finds each by its own.
@gluon.jit(do_not_specialize=["M"])
def _norm_linear_kernel_qkv_post_kernel_sm90(
    s_desc, w_desc, q_desc, squares_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr,
    k_ptr, v_ptr, M, C, K, N, KV, eps, cache_stride_block, cache_stride_pos, cache_stride_h,
    BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Tiles program_id, program_id + num_programs, ... of the packed projection [M, C]."""
    s, w, y, ready, free, turn = ring(s_desc.dtype, HEAD, HEAD, STAGES, True)
    tiles = gl.cdiv(M, BLOCK_M) * gl.cdiv(C, HEAD)
    gl.warp_specialize(
        [
            (_consume, (
                q_desc, squares_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr,
                k_ptr, v_ptr, s, w, y.index(0), ready, free, turn, tiles, M, C, K, N, KV, eps,
                cache_stride_block, cache_stride_pos, cache_stride_h, BLOCK_SIZE, 0,
            )),
            (_consume, (
                q_desc, squares_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr,
                k_ptr, v_ptr, s, w, y.index(1), ready, free, turn, tiles, M, C, K, N, KV, eps,
                cache_stride_block, cache_stride_pos, cache_stride_h, BLOCK_SIZE, 1,
            )),
            (produce, (s_desc, w_desc, s, w, ready, free, tiles, M, C, K, False)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def hopper_takes_whole_heads(s_TK: Tensor, weight_OK: Tensor, k_cache: Tensor) -> bool:
    """Whether `normed_qkv_sm90` computes this; a function of device, dtypes, shapes and strides alone."""
    return (
        hopper_takes_product(s_TK, weight_OK)
        and k_cache.shape[3] == HEAD_DIM and k_cache.dtype == s_TK.dtype and k_cache.stride(3) == 1
    )  # fmt: skip


def normed_qkv_sm90(
    x_TK: Tensor, residual_TK: Tensor | None, weight_OK: Tensor, bias_O: Tensor | None, partials_TP: Tensor | None,
    q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor, positions_T: Tensor,
    slots_T: Tensor, k_cache: Tensor, v_cache: Tensor, num_heads: int, eps: float, pdl: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(q [T, N, D], s [T, K]); arguments as in `norm_linear` and `qk_norm_rope_store`.

    Only where `hopper_takes_whole_heads`. Keys and values go to their slots, those of padded rows (slot -1) nowhere.
    """
    s, squares = stream_and_squares(x_TK, residual_TK, partials_TP, pdl)
    (m, k), columns, num_kv_heads = s.shape, weight_OK.shape[0], k_cache.shape[2]
    q = torch.empty((m, num_heads, HEAD_DIM), dtype=s.dtype, device=s.device)
    if m == 0:
        return q, s
    tiles = cdiv(m, ROWS_OF_TILE) * cdiv(columns, HEAD_DIM)
    _norm_linear_kernel_qkv_post_kernel_sm90[(min(tiles, num_sms(s)),)](
        boxes(s, ROWS_OF_TILE, STEP_COLUMNS), boxes(weight_OK, HEAD_DIM, STEP_COLUMNS),
        boxes(q.flatten(1), ROWS_OF_TILE, HEAD_DIM), squares, bias_O, q_norm_D, k_norm_D, cos_PD2, sin_PD2,
        positions_T, slots_T, k_cache, v_cache, m, columns, k, num_heads, num_kv_heads, eps, *k_cache.stride()[:3],
        BLOCK_SIZE=k_cache.shape[1], STAGES=num_stages(TURNS_N, silu=False), num_warps=4, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
    return q, s
