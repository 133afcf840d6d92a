"""The main loop that every fused linear layer shares: a tile of x @ W^T.

    gemv path alone:  s = x (+ residual, rounded to the dtype);  acc = (s * gamma) W^T;  squares = sum_k s^2

Shape suffixes: M rows, N outputs, K inputs. Accumulation in fp32. On the wide path acc is [M, N], on the others
[N, M] (see tiles.py). With more rows than a gemv has, x comes as it is to be multiplied: what every tile did
to it would be done as often as there are tiles, between its load and the tensor cores. Under PDL only weights, which
are constants, are loaded or prefetched before `gdc_wait`.
"""

from engine.kernels._triton import tl, triton
from variants.kernels.tiles import HELD_SLICES

SLICES = tl.constexpr(HELD_SLICES)


@triton.jit
def tile_index(num_rows, num_cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(tile row, tile column) of this program: groups of eight tile rows share their weights in L2."""
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_cols, BLOCK_N)
    group = pid // (8 * tiles_n)
    rows = tl.minimum(tiles_m - group * 8, 8)
    within = pid - group * 8 * tiles_n
    return group * 8 + within % rows, within // rows


@triton.jit
def prefetch_rows(w_ptr, w_stride, first, num_rows, k_low, k_high, ROWS: tl.constexpr):
    """Pull elements [k_low, k_high) of ROWS weight rows into L2 by bulk prefetches of whole 16-byte units."""
    # One a thread; two where 128 threads have 256 rows, so that no row is left out.
    THREADS: tl.constexpr = tl.extra.cuda.num_threads()
    COUNT: tl.constexpr = THREADS if THREADS > ROWS else ROWS
    SEGMENTS: tl.constexpr = (COUNT + ROWS - 1) // ROWS
    BYTES: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth // 8
    i = tl.arange(0, COUNT)
    row = tl.minimum(first + i // SEGMENTS, num_rows - 1).to(tl.int64)
    length = tl.cdiv(tl.cdiv(k_high - k_low, SEGMENTS), 8) * 8
    low = k_low + (i % SEGMENTS) * length
    size = tl.minimum(k_high - low, length) * BYTES
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [w_ptr + row * w_stride + low, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def load_stream(x_ptr, residual_ptr, s_ptr, gamma_ptr, x_stride, r_stride, s_stride, m, k, mask, k_mask, write):
    """(s, s * gamma) at rows m and columns k, zero outside the mask; s is also stored where `write`."""
    s = tl.load(x_ptr + m * x_stride + k, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + m * r_stride + k, mask=mask, other=0.0)
        s = (s.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
        if s_ptr is not None:
            tl.store(s_ptr + m * s_stride + k, s, mask=mask & write)
    scaled = s
    if gamma_ptr is not None:
        gamma = tl.load(gamma_ptr + k, mask=k_mask, other=0.0)
        scaled = (s.to(tl.float32) * gamma.to(tl.float32)).to(s.dtype)
    return s, scaled


@triton.jit
def begin(
    w_ptr, w2_ptr, w_stride, tile_m, tile_n, N, k_low, k_high,
    PATH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """(first weights, first second weights) for `product`; whatever another kernel wrote may be read after this.

    Under PDL the weights are on their way before the wait: the first into registers (gemv, held), the others into L2.
    The next kernel is let go before the first load: the compiler unpacks what was loaded as soon as it can, and a
    program that waits for its weights before it lets go keeps the next kernel's from travelling beside them.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w, w2 = 0.0, 0.0
    if PATH == "gemv":
        n, k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), k_low + tl.arange(0, BLOCK_K)[None, :]
        rows = tl.minimum(n, N - 1).to(tl.int64)[:, None] * w_stride + k
        w = tl.load(w_ptr + rows, mask=k < k_high, other=0.0)
        if w2_ptr is not None:
            w2 = tl.load(w2_ptr + rows, mask=k < k_high, other=0.0)
        k_low += BLOCK_K
    elif PATH == "held":
        w = _load_slices(w_ptr, w_stride, tile_n, N, k_low, k_high, BLOCK_N, BLOCK_K)
        if w2_ptr is not None:
            w2 = _load_slices(w2_ptr, w_stride, tile_n, N, k_low, k_high, BLOCK_N, BLOCK_K)
        k_low += BLOCK_K
    if PDL:
        if PATH == "wide":
            # The first row of tiles pulls for all.
            k_high = tl.where(tile_m == 0, k_high, k_low)
        if PREFETCH:
            prefetch_rows(w_ptr, w_stride, tile_n * BLOCK_N, N, k_low, k_high, BLOCK_N)
            if w2_ptr is not None:
                prefetch_rows(w2_ptr, w_stride, tile_n * BLOCK_N, N, k_low, k_high, BLOCK_N)
        tl.extra.cuda.gdc_wait()
    return w, w2


@triton.jit
def see_what_was_written():
    """What the kernel before stored may be read by the tensor memory accelerator after this, behind `begin`."""
    tl.inline_asm_elementwise(
        "fence.proxy.async.global; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def product(
    w, w2, x_desc, w_desc, x_ptr, residual_ptr, s_ptr, gamma_ptr, w_ptr, w2_ptr,
    x_stride, r_stride, s_stride, w_stride, tile_m, tile_n, M, N, k_low, k_high,
    PATH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SQUARES: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """(acc, acc of the second weights, squares [M] if SQUARES, gemv only) over columns [k_low, k_high).

    `w` and `w2` are what `begin` gave, the descriptors what `descriptors` in tiles.py gave. Without second weights the
    second acc is zeros, and the compiler drops it.
    """
    if PATH == "gemv":
        acc, acc2, squares = _gemv_product(
            w, w2, x_ptr, residual_ptr, s_ptr, gamma_ptr, w_ptr, w2_ptr, x_stride, r_stride, s_stride, w_stride,
            tile_m, tile_n, M, N, k_low, k_high, BLOCK_M, BLOCK_N, BLOCK_K, SQUARES, ONCE,
        )  # fmt: skip
    elif PATH == "held":
        squares = tl.zeros([BLOCK_M], tl.float32)
        acc, acc2 = _held_product(
            w, w2, x_ptr, w_ptr, w2_ptr, x_stride, w_stride, tile_m, tile_n, M, N, k_low, k_high,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN, ONCE,
        )  # fmt: skip
    else:
        squares = tl.zeros([BLOCK_M], tl.float32)
        if x_desc is not None:
            acc, acc2 = _tma_product(
                x_desc, w_desc, N, w2_ptr is not None, tile_m, tile_n, k_low, k_high, BLOCK_M, BLOCK_N, BLOCK_K, STAGES
            )
        else:
            acc, acc2 = _dot_product(
                x_ptr, w_ptr, w2_ptr, x_stride, w_stride, tile_m, tile_n, M, N, k_low, k_high,
                BLOCK_M, BLOCK_N, BLOCK_K, PATH == "skinny", STAGES, EVEN,
            )  # fmt: skip
    return acc, acc2, squares


@triton.jit
def _gemv_product(
    w, w2, x_ptr, residual_ptr, s_ptr, gamma_ptr, w_ptr, w2_ptr, x_stride, r_stride, s_stride, w_stride, tile_m, tile_n,
    M, N, k_low, k_high,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SQUARES: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """A few rows, weights in registers: the next are loaded before the current ones are used. acc is [N, M].

    ONCE: the first weights are all there are. Without the next ones a program needs half the registers, and the
    programs of the kernel after it find room while it still waits.
    """
    n, cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    w_rows = tl.minimum(n, N - 1).to(tl.int64)[:, None] * w_stride + cols[None, :]
    LANES: tl.constexpr = BLOCK_K // 8
    acc = tl.zeros([BLOCK_N, LANES, BLOCK_M], tl.float32)
    acc2 = tl.zeros([BLOCK_N, LANES, BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M] if ONCE else [LANES, BLOCK_M], tl.float32)
    if ONCE:
        acc, acc2, squares = _gemv_step(
            w, w2, acc, acc2, squares, x_ptr, residual_ptr, s_ptr, gamma_ptr, w2_ptr, x_stride, r_stride, s_stride,
            tile_m, tile_n, M, k_low + cols, k_high, BLOCK_M, BLOCK_N, BLOCK_K, SQUARES, ONCE,
        )  # fmt: skip
    else:
        for low in range(k_low, k_high, BLOCK_K):
            k = low + cols
            next_mask = (k + BLOCK_K < k_high)[None, :]
            next_w = tl.load(w_ptr + w_rows + low + BLOCK_K, mask=next_mask, other=0.0)
            if w2_ptr is not None:
                next_w2 = tl.load(w2_ptr + w_rows + low + BLOCK_K, mask=next_mask, other=0.0)
            acc, acc2, squares = _gemv_step(
                w, w2, acc, acc2, squares, x_ptr, residual_ptr, s_ptr, gamma_ptr, w2_ptr, x_stride, r_stride, s_stride,
                tile_m, tile_n, M, k, k_high, BLOCK_M, BLOCK_N, BLOCK_K, SQUARES, ONCE,
            )  # fmt: skip
            w = next_w
            if w2_ptr is not None:
                w2 = next_w2
    acc, acc2 = _sum_both(acc, acc2, w2_ptr is not None, 1)
    return acc, acc2, squares if ONCE else tl.sum(squares, axis=0)


@triton.jit
def _add_pairs(a, a2, b, b2):
    return a + b, a2 + b2


@triton.jit
def _sum_both(acc, acc2, DUAL: tl.constexpr, AXIS: tl.constexpr):
    """Both summed over an axis, at once: threads meet as often as for one. Without DUAL the second is not used."""
    if DUAL:
        sums, sums2 = tl.reduce((acc, acc2), AXIS, _add_pairs)
    else:
        sums, sums2 = tl.sum(acc, axis=AXIS), tl.sum(acc2, axis=AXIS)
    return sums, sums2


@triton.jit
def _gemv_step(
    w, w2, acc, acc2, squares, x_ptr, residual_ptr, s_ptr, gamma_ptr, w2_ptr, x_stride, r_stride, s_stride,
    tile_m, tile_n, M, k, k_high,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SQUARES: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """The sums [N, K / 8, M] and squares [K / 8, M] with the products at columns k.

    Eight neighbours are summed within their thread; threads meet once, after the last step. ONCE: squares are summed
    here, to [M]. What is kept of them by lane makes the compiler spill (all of it, with two rows).
    """
    LANES: tl.constexpr = BLOCK_K // 8
    m, live = tl.arange(0, BLOCK_M), k < k_high
    for i in tl.static_range(BLOCK_M):
        row = (tile_m * BLOCK_M + i).to(tl.int64)
        s, scaled = load_stream(
            x_ptr, residual_ptr, s_ptr, gamma_ptr, x_stride, r_stride, s_stride, row, k, live & (row < M), live,
            tile_n == 0,
        )  # fmt: skip
        a = scaled.to(tl.float32)[None, :]
        acc += _at_row(_sum_eights(w.to(tl.float32) * a, BLOCK_N, LANES), m, i)
        if w2_ptr is not None:
            acc2 += _at_row(_sum_eights(w2.to(tl.float32) * a, BLOCK_N, LANES), m, i)
        if SQUARES and ONCE:
            squares = tl.where(m == i, tl.sum(s.to(tl.float32) * s.to(tl.float32), axis=0), squares)
        elif SQUARES:
            s = s.to(tl.float32)[None, :]
            squares += tl.reshape(_at_row(_sum_eights(s * s, 1, LANES), m, i), [LANES, BLOCK_M])
    return acc, acc2, squares


@triton.jit
def _sum_eights(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """[ROWS, 8 * LANES] -> [ROWS, LANES]."""
    return tl.sum(tl.reshape(x, [ROWS, LANES, 8]), axis=2)


@triton.jit
def _at_row(x, m, i: tl.constexpr):
    """[N, LANES] -> [N, LANES, M], zero but for row i; a selection, since a product would spread NaN."""
    return tl.where((m == i)[None, None, :], x[:, :, None], 0.0)


@triton.jit
def _load_slices(w_ptr, w_stride, tile_n, N, k_low, k_high, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Weights [SLICES, BLOCK_N, BLOCK_K / SLICES], zero from k_high on."""
    n = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    k = k_low + _slice_columns(BLOCK_K)
    return tl.load(w_ptr + n[None, :, None] * w_stride + k, mask=k < k_high, other=0.0)


@triton.jit
def _slice_columns(BLOCK_K: tl.constexpr):
    """[SLICES, 1, BLOCK_K / SLICES]"""
    WIDTH: tl.constexpr = BLOCK_K // SLICES
    return tl.arange(0, SLICES)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def _held_product(
    w, w2, x_ptr, w_ptr, w2_ptr, x_stride, w_stride, tile_m, tile_n, M, N, k_low, k_high,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """On the tensor cores, the weights there before x is, as in a gemv; each slice of K by itself. acc is [N, M]."""
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :, None]
    x_rows, live_rows, cols = x_ptr + m.to(tl.int64) * x_stride, m < M, _slice_columns(BLOCK_K)
    acc = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    acc2 = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    if ONCE:
        acc, acc2 = _held_step(w, w2, acc, acc2, x_rows, w2_ptr, live_rows, k_low + cols, k_high, EVEN)
    else:
        for low in range(k_low, k_high, BLOCK_K):
            next_w = _load_slices(w_ptr, w_stride, tile_n, N, low + BLOCK_K, k_high, BLOCK_N, BLOCK_K)
            if w2_ptr is not None:
                next_w2 = _load_slices(w2_ptr, w_stride, tile_n, N, low + BLOCK_K, k_high, BLOCK_N, BLOCK_K)
            acc, acc2 = _held_step(w, w2, acc, acc2, x_rows, w2_ptr, live_rows, low + cols, k_high, EVEN)
            w = next_w
            if w2_ptr is not None:
                w2 = next_w2
    return _sum_both(acc, acc2, w2_ptr is not None, 0)


@triton.jit
def _held_step(w, w2, acc, acc2, x_rows, w2_ptr, live_rows, k, k_high, EVEN: tl.constexpr):
    """The sums [SLICES, N, M] with the products at columns k."""
    x = tl.load(x_rows + k, mask=live_rows if EVEN else live_rows & (k < k_high), other=0.0)
    x = tl.permute(x, [0, 2, 1])
    acc = tl.dot(w, x, acc, input_precision="ieee")
    if w2_ptr is not None:
        acc2 = tl.dot(w2, x, acc2, input_precision="ieee")
    return acc, acc2


@triton.jit
def _dot_product(
    x_ptr, w_ptr, w2_ptr, x_stride, w_stride, tile_m, tile_n, M, N, k_low, k_high,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, STAGES: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """On the tensor cores. SWAP makes the weights the left operand, acc [N, M]; else acc is [M, N].

    EVEN: BLOCK_K divides the range, so that no column needs a mask.
    """
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    cols, live_rows = tl.arange(0, BLOCK_K)[None, :], (m < M)[:, None]
    x_rows = m.to(tl.int64)[:, None] * x_stride + cols
    w_rows = tl.minimum(n, N - 1).to(tl.int64)[:, None] * w_stride + cols
    acc = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
    acc2 = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
    for low in tl.range(k_low, k_high, BLOCK_K, num_stages=STAGES):
        k = low + cols
        x = tl.load(x_ptr + x_rows + low, mask=live_rows if EVEN else live_rows & (k < k_high), other=0.0)
        acc = _dot(x, _load_weights(w_ptr + w_rows + low, k, k_high, EVEN), acc, SWAP)
        if w2_ptr is not None:
            acc2 = _dot(x, _load_weights(w2_ptr + w_rows + low, k, k_high, EVEN), acc2, SWAP)
    return acc, acc2


@triton.jit
def _tma_product(
    x_desc, w_desc, second, DUAL: tl.constexpr, tile_m, tile_n, k_low, k_high,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Many rows, tiles brought by the tensor memory accelerator (zeros outside the matrices). acc is [M, N].

    The second weights lie `second` rows after the first.
    """
    m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc2 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(k_low, k_high, BLOCK_K, num_stages=STAGES):
        x = x_desc.load([m, k])
        acc = tl.dot(x, w_desc.load([n, k]).T, acc)
        if DUAL:
            acc2 = tl.dot(x, w_desc.load([second + n, k]).T, acc2)
    return acc, acc2


@triton.jit
def _load_weights(ptrs, k, k_high, EVEN: tl.constexpr):
    if EVEN:
        w = tl.load(ptrs)
    else:
        w = tl.load(ptrs, mask=k < k_high, other=0.0)
    return w


@triton.jit
def _dot(x, w, acc, SWAP: tl.constexpr):
    if SWAP:
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    else:
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    return acc


@triton.jit
def load_partials(partials_ptr, num_partials, p_stride, m, M, BLOCK_P: tl.constexpr):
    """Sums of squares [M, P] from the kernel before, which left one per tile.

    To be summed after the product: they travel beside x, and a sum before it would make a program wait twice.
    """
    p = tl.arange(0, BLOCK_P)[None, :]
    mask = (m < M)[:, None] & (p < num_partials)
    return tl.load(partials_ptr + m[:, None] * p_stride + p, mask=mask, other=0.0)
