"""Which tile a fused linear layer runs with: pure functions of its shape, so that a CUDA graph's choice stays valid.

Shape suffixes: M rows, N outputs, K inputs of a linear layer.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from engine.kernels._triton import TensorDescriptor, cdiv, next_power_of_2

# Two rows through registers pay for small weights only; from there on the tensor cores are faster (H200,
# challenges.md).
MAX_TWO_ROW_WEIGHTS = 16 * 2**20
# Larger weights stream for longer than their first reads take: of five shapes of 8 to 16 Mi four were slower held
# (docs/data/few_sequences.json).
MAX_HELD_WEIGHTS = 8 * 2**20
# Weights that a thread can have in its registers, and the most parts of K that are worth their sum.
HELD_A_THREAD = 128
MAX_HELD_SPLITS = 4
MIN_HELD_WARPS, MAX_HELD_WARPS = 4, 8
# Larger weights, prefetched for several kernels ahead, push each other out of L2 again.
MAX_PREFETCH_BYTES = 9 * 2**20
# Every program reads all of x, past any loop that could hide it.
MAX_HELD_ROWS = 16
# Parts of K that a held program multiplies by themselves, one a warp or two.
HELD_SLICES = 8
MAX_SKINNY_ROWS = 64
# So many tiles a multiprocessor that larger ones come out even too: an LM head's.
MANY_TILES = 16
# (block_m, block_n) of the wide path, most reuse first.
WIDE_BLOCKS = ((128, 256), (128, 128), (64, 128), (64, 64))


@dataclass(frozen=True)
class Tile:
    """How a product is cut up.

    `gemv` streams weight rows through registers; `held` does too, but multiplies on the tensor cores, a few slices of
    K each by itself; `skinny` brings them through shared memory. Both make the weights the wide operand, so that few
    rows of x pad to 8 and not to 64. `wide` is the usual tiled product, its programs ordered in groups of rows. Brought
    by the tensor memory accelerator it is launched plainly unless `dependent`: then its weights travel before the wait.
    """

    path: Literal["gemv", "held", "skinny", "wide"]
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    stages: int
    splits: int = 1
    dependent: bool = False

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Programs: output tiles, parts of K."""
        return cdiv(m, self.block_m) * cdiv(n, self.block_n), self.splits

    def even(self, k: int) -> bool:
        """Whether every program has whole blocks of K, and at least one."""
        steps = cdiv(k, self.block_k)
        return k % self.block_k == 0 and cdiv(steps, cdiv(steps, self.splits)) == self.splits

    def once(self, k: int) -> bool:
        """Whether the first block of K that a program loads is its last."""
        return k <= self.block_k * self.splits


def linear_tile(m: int, n: int, k: int, itemsize: int, sms: int, matrices: int = 1, can_split: bool = False) -> Tile:
    """The tile of x [m, k] times `matrices` weights [n, k] at once; `can_split` where the caller can add parts of K."""
    # To a gemv and a skinny tile several matrices are one of wider elements.
    if m == 1 or (m == 2 and n * k <= MAX_TWO_ROW_WEIGHTS):
        return _gemv_tile(m, n, k, itemsize * matrices, sms)
    if m <= MAX_HELD_ROWS and n * k * matrices <= MAX_HELD_WEIGHTS and itemsize == 2:
        held = _held_tile(m, k, matrices, can_split)
        if held.once(k):
            return held
    if m <= MAX_SKINNY_ROWS:
        return _skinny_tile(m, n, k, itemsize * matrices, sms, can_split)
    return _wide_tile(m, n, itemsize, sms, matrices)


def _gemv_tile(m: int, n: int, k: int, bytes_per_weight: int, sms: int) -> Tile:
    # Two programs a multiprocessor keep the memory busy; a program's step of weights stays in registers, twice.
    step_bytes = 16384 if m == 1 else 8192
    block_n = next((b for b, programs in ((32, 16), (16, 2), (8, 2)) if cdiv(n, b) >= programs * sms), 4)
    block_k = min(next_power_of_2(k), max(128, step_bytes // bytes_per_weight // block_n))
    return Tile("gemv", next_power_of_2(m), block_n, max(16, block_k), num_warps=4, stages=2)


def _held_tile(m: int, k: int, matrices: int, can_split: bool) -> Tile:
    block_n, weights_a_warp = 16, HELD_A_THREAD * 32
    most = weights_a_warp * MAX_HELD_WARPS // block_n // matrices
    block_k, splits = min(max(128, next_power_of_2(k)), most), 1
    if k > block_k and can_split:
        # Parts that fill their blocks if there are such.
        whole = (s for s in range(2, MAX_HELD_SPLITS + 1) if k % s == 0 and next_power_of_2(k // s) == k // s <= most)
        splits = next(whole, min(cdiv(k, block_k), MAX_HELD_SPLITS))
        block_k = min(max(128, next_power_of_2(cdiv(k, splits))), most)
    # As few as hold it: at equal blocks four were 2 to 8 % of a step faster than eight (docs/data/few_warps.json).
    num_warps = max(MIN_HELD_WARPS, block_n * block_k * matrices // weights_a_warp)
    return Tile("held", max(8, next_power_of_2(m)), block_n, block_k, num_warps, stages=1, splits=splits)


def _skinny_tile(m: int, n: int, k: int, bytes_per_weight: int, sms: int, can_split: bool) -> Tile:
    block_m = max(8, next_power_of_2(m))
    if block_m == 8 and bytes_per_weight <= 4:
        return _narrow_tile(n, k, bytes_per_weight, sms, can_split)
    # An eighth of the multiprocessors idle costs less than tiles of half the size.
    block_n = 64 if can_split else next((b for b in (64, 32) if cdiv(n, b) >= sms * 7 // 8), 16)
    block_k = 128 if block_n == 64 or m > 16 else 256
    block_k = min(block_k * 2 // bytes_per_weight, max(16, next_power_of_2(k)))
    splits = 1
    if can_split:
        # Parts of at least four steps, enough of them for two programs a multiprocessor.
        splits = max(1, min(2 * sms // cdiv(n, block_n), cdiv(k, 4 * block_k), 8))
    # Two warps would spill registers where 64 rows are squared beside so narrow a tile.
    num_warps = 2 if block_n == 16 and block_m < 64 else 4
    return Tile("skinny", block_m, block_n, max(16, block_k), num_warps, 3 if m > 32 else 4, splits)


def _narrow_tile(n: int, k: int, bytes_per_weight: int, sms: int, can_split: bool) -> Tile:
    """Up to eight rows: few long rows of weights a step, two warps."""
    if cdiv(n, 32) >= MANY_TILES * sms:
        return Tile("skinny", 8, 64, min(128, max(16, next_power_of_2(k))), num_warps=4, stages=4)
    block_n, num_warps = 32, 2
    block_k = 256 if k % 256 == 0 else min(128, max(16, next_power_of_2(k)))
    stages, splits, tiles = 4 if block_k == 256 else 6, 1, cdiv(n, block_n)
    if can_split:
        # Once most multiprocessors have a program, only parts of many steps are worth their sum.
        least = 16 if tiles >= sms * 7 // 8 else 4
        splits, stages = max(1, min(2 * sms // tiles, cdiv(k, least * block_k), 8)), max(5, stages)
    elif tiles < sms * 7 // 8 or (bytes_per_weight == 4 and block_k == 256 and not _comes_out_even(tiles, sms)):
        block_n = 16
    return Tile("skinny", 8, block_n, block_k, num_warps, stages, splits)


def _comes_out_even(tiles: int, sms: int) -> bool:
    """Whether the last round of tiles, one a multiprocessor, is nearly full: else smaller tiles were faster."""
    return tiles >= 0.94 * cdiv(tiles, sms) * sms


def _wide_tile(m: int, n: int, itemsize: int, sms: int, matrices: int) -> Tile:
    if itemsize > 2:
        # fp32 runs without tensor cores and is here to be right, not fast.
        return Tile("wide", 32, 32, 32, num_warps=4, stages=2)
    blocks = [(bm, bn // matrices) for bm, bn in WIDE_BLOCKS]
    block_m, block_n = next(((bm, bn) for bm, bn in blocks if cdiv(m, bm) * cdiv(n, bn) >= sms), blocks[-1])
    large = block_m * block_n * matrices >= 128 * 128
    return Tile("wide", block_m, block_n, 64, num_warps=8 if large else 4, stages=4 if block_n * matrices < 256 else 3)


def can_prefetch(weight_NK: Tensor, tile: Tile) -> bool:
    """Whether weight rows can be bulk-prefetched (whole 16-byte units), and it pays: not where all are in registers."""
    small = weight_NK.numel() * weight_NK.element_size() <= MAX_PREFETCH_BYTES
    aligned = weight_NK.data_ptr() % 16 == 0 and weight_NK.stride(0) % 8 == 0 and weight_NK.shape[1] % 8 == 0
    in_registers = tile.path in ("gemv", "held") and tile.once(weight_NK.shape[1])
    return small and aligned and (tile.path != "wide" or tile.dependent) and not in_registers


def descriptors(x_MK: Tensor, weight_NK: Tensor, tile: Tile) -> tuple[Any, Any]:
    """Tensor memory descriptors of x and the weight, or (None, None) where the path or the alignment forbids them.

    Under PDL a kernel with descriptors fences its reads through the asynchronous proxy (`see_what_was_written`). With
    many rows it has little to gain, so that only a `dependent` tile is launched so.
    """
    aligned = all(t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in (x_MK, weight_NK))
    if tile.path != "wide" or x_MK.element_size() != 2 or not aligned:
        return None, None
    return (
        TensorDescriptor.from_tensor(x_MK, [tile.block_m, tile.block_k]),
        TensorDescriptor.from_tensor(weight_NK, [tile.block_n, tile.block_k]),
    )
