"""Tile choices: every shape gets a legal tile, and the shapes that matter get enough programs."""

import itertools

import pytest
import torch

from variants.kernels.tiles import MAX_HELD_ROWS, MAX_TWO_ROW_WEIGHTS, Tile, can_prefetch, descriptors, linear_tile

SMS = 132
# (N, K) of qkv, o, gate_up and down in Qwen3-0.6B and Qwen3-8B, and odd ones.
SHAPES = [(4096, 1024), (1024, 2048), (3072, 1024), (6144, 4096), (4096, 12288), (960, 576), (5125, 736), (1, 1)]


@pytest.mark.parametrize("m", [1, 2, 4, 5, 16, 17, 64, 65, 128, 199, 2048])
def test_every_shape_gets_a_legal_tile(m):
    for (n, k), itemsize, matrices, can_split in itertools.product(SHAPES, (2, 4), (1, 2), (False, True)):
        check_tile(m, n, k, itemsize, matrices, can_split and matrices == 1)


def paths(m, n, k, bytes_per_weight):
    """Those that a shape may take; few rows may also be too long to be held."""
    if m == 1 or (m == 2 and n * k <= MAX_TWO_ROW_WEIGHTS):
        return ("gemv",)
    return ("held", "skinny") if m <= MAX_HELD_ROWS and bytes_per_weight <= 4 else ("skinny",) if m <= 64 else ("wide",)


def test_small_weights_are_held_whole_by_few_rows():
    for (n, k), m in itertools.product([(4096, 1024), (1024, 2048), (1024, 3072), (576, 576), (576, 1536)], (3, 8, 16)):
        tile = linear_tile(m, n, k, 2, SMS, can_split=True)
        assert (tile.path, tile.once(k)) == ("held", True)
        assert linear_tile(m, n, k, 4, SMS, can_split=True).path == "skinny"
    assert linear_tile(8, 1024, 3072, 2, SMS, can_split=True).even(3072)
    assert linear_tile(8, 24576, 4096, 2, SMS).path == "skinny"
    assert linear_tile(17, 4096, 1024, 2, SMS).path == "skinny"


def check_tile(m, n, k, itemsize, matrices, can_split):
    tile = linear_tile(m, n, k, itemsize, SMS, matrices, can_split)
    blocks = (tile.block_m, tile.block_n, tile.block_k)
    assert all(b & (b - 1) == 0 for b in blocks)
    assert tile.block_k >= 16
    assert tile.num_warps in (2, 4, 8)
    assert tile.path in paths(m, n, k, itemsize * matrices)
    if tile.path != "wide":
        assert tile.block_m >= m
    buffers = tile.stages * (matrices * tile.block_n + tile.block_m) * tile.block_k * itemsize
    assert tile.path == "gemv" or buffers <= 227 * 1024
    tiles, splits = tile.grid(m, n)
    assert tiles * tile.block_m * tile.block_n >= m * n
    assert splits * tile.block_k <= max(tile.block_k, k)
    assert can_split or splits == 1, "parts that nobody adds"


@pytest.mark.parametrize(("n", "k"), SHAPES[:5])
def test_one_row_fills_the_gpu(n, k):
    assert linear_tile(1, n, k, 2, SMS).grid(1, n)[0] >= 1.9 * SMS


@pytest.mark.parametrize("m", [8, 64])
def test_split_k_fills_the_gpu_where_outputs_are_few(m):
    tiles, splits = linear_tile(m, 1024, 3072, 2, SMS, can_split=True).grid(m, 1024)
    assert tiles * splits >= 0.7 * SMS
    assert linear_tile(m, 24576, 4096, 2, SMS, can_split=True).splits == 1


def test_eight_rows_get_what_the_search_found_at_large_shapes():
    # qwen3-8b's gate and up, and o, as in the table of measured tiles.
    assert linear_tile(8, 12288, 4096, 2, SMS, matrices=2) == Tile("skinny", 8, 32, 256, num_warps=2, stages=4)
    assert linear_tile(8, 4096, 4096, 2, SMS, can_split=True) == Tile("skinny", 8, 32, 256, num_warps=2, stages=5)
    # llama-3.2-1b's tiles of 32 come out even, qwen3-1.7b's do not.
    assert [linear_tile(8, n, 2048, 2, SMS, matrices=2).block_n for n in (8192, 6144)] == [32, 16]
    # Few outputs: parts of K until there are about two programs a multiprocessor.
    assert linear_tile(8, 2048, 8192, 2, SMS, can_split=True).grid(8, 2048) == (64, 4)
    # K that is no multiple of 256, and an LM head.
    assert linear_tile(4, 9728, 896, 2, SMS, matrices=2).block_k == 128
    assert linear_tile(8, 151936, 2048, 2, SMS).block_n == 64


def rows(count, width, stride=None, offset=0, dtype=torch.bfloat16):
    """A matrix at an address that is `offset` elements past a multiple of 64 bytes."""
    stride = stride or width
    memory = torch.zeros(count * stride + offset + 64, dtype=dtype)
    start = -memory.data_ptr() % 64 // memory.element_size() + offset
    return memory.as_strided((count, width), (stride, 1), start)


def test_only_whole_units_of_small_weights_that_are_streamed_are_prefetched():
    skinny, wide = Tile("skinny", 8, 32, 64, 4, 4), Tile("wide", 64, 64, 64, 4, 4)
    assert can_prefetch(rows(64, 128), skinny)
    assert can_prefetch(rows(64, 128, stride=136), skinny)
    for apart in (rows(64, 128, stride=132), rows(64, 132, stride=136), rows(64, 128, offset=4), rows(5000, 1024)):
        assert not can_prefetch(apart, skinny)
    assert not can_prefetch(rows(64, 128), wide)
    for path in ("gemv", "held"):
        assert not can_prefetch(rows(64, 128), Tile(path, 8, 16, 128, 4, 1))
        assert can_prefetch(rows(64, 128), Tile(path, 8, 16, 64, 4, 1))


def test_only_aligned_halves_of_the_wide_path_have_descriptors():
    tile, right = Tile("wide", 64, 32, 16, 4, 4), rows(64, 128)
    x, weight = descriptors(right, rows(96, 128, stride=136), tile)
    assert (list(x.shape), list(x.block_shape)) == ([64, 128], [64, 16])
    assert (list(weight.shape), list(weight.block_shape)) == ([96, 128], [32, 16])
    for wrong in (rows(64, 128, stride=132), rows(64, 128, offset=4)):
        assert descriptors(wrong, right, tile) == descriptors(right, wrong, tile) == (None, None)
    assert descriptors(rows(64, 128, dtype=torch.float32), right, tile) == (None, None)
    assert descriptors(right, right, Tile("skinny", 8, 32, 64, 4, 4)) == (None, None)
