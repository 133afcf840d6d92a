"""The tiles that tuning tries: few, all of them legal, and different in what matters."""

from dataclasses import replace
from typing import Any

import pytest

from experiments.kernels.candidates import (
    MOST_PROGRAMS_PER_SM_SPLIT,
    MOST_TILES,
    SCRATCH_BYTES,
    Problem,
    _buffers,
    candidates,
    in_turns,
    is_legal,
    neighbours,
)
from experiments.kernels.tuning import KernelPoint
from tests.kernel_aot import MAX_SHARED_BYTES, compile_cases
from tests.variants.kernels import test_aot as aot
from variants.kernels.tile_table import FILE, read_table, rows_class, shape_of
from variants.kernels.tiles import Tile

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
# (n, K, matrices, can_split): the linear layers of Qwen3-0.6B and Qwen3-8B, and small and odd ones.
SHAPES = [
    (4096, 1024, 1, False),
    (1024, 3072, 1, True),
    (3072, 1024, 2, False),
    (151936, 1024, 1, False),
    (12288, 4096, 2, False),
    (4096, 12288, 1, True),
    (960, 576, 1, False),
    (64, 64, 1, True),
    (40, 99, 1, False),
]


def problem(rows: int, n: int, k: int, matrices: int, can_split: bool) -> Problem:
    return Problem(rows, n, k, 2, matrices, can_split, sms=132)


@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_are_few_legal_and_begin_with_the_heuristics(shape: Any) -> None:
    for rows in ROWS:
        asked = problem(rows, *shape)
        found = candidates(asked)
        assert found[0] == asked.heuristic()
        assert 2 <= len(found) <= MOST_TILES
        assert len(set(found)) == len(found)
        for tile in found:
            assert is_legal(tile, asked), tile
            assert all(b & (b - 1) == 0 for b in (tile.block_m, tile.block_n, tile.block_k, tile.num_warps))
            assert tile.path == "wide" or tile.block_m >= rows
            assert tile.splits == 1 or asked.can_split
            assert tile.path == "wide" or not tile.dependent


def test_wide_tiles_are_tried_launched_plainly_and_dependently_where_that_differs() -> None:
    asked = problem(128, *SHAPES[0])
    assert {tile.dependent for tile in candidates(asked)} == {False, True}
    for plain in (replace(asked, by_tma=False), replace(asked, rows=512)):
        assert {tile.dependent for tile in candidates(plain)} == {False}
    tile = Tile("wide", 64, 64, 64, 4, 3)
    assert replace(tile, dependent=True) in neighbours(tile, asked)
    assert not any(near.dependent for near in neighbours(tile, replace(asked, by_tma=False)))


@pytest.mark.parametrize("rows", [64, 512, 8192])
def test_parts_of_wide_tiles_are_few_programs_and_have_tickets(rows: int) -> None:
    down = problem(rows, 4096, 12288, 1, True)
    for tile in candidates(down):
        tiles, splits = tile.grid(rows, down.n)
        assert splits == 1 or tiles * splits <= MOST_PROGRAMS_PER_SM_SPLIT * down.sms, tile
    assert any(tile.path == "wide" and tile.splits > 1 for tile in candidates(replace(down, rows=64)))
    # 8192 tiles, and no more than 4096 can be counted.
    many = replace(down, rows=8192)
    assert is_legal(Tile("wide", 64, 64, 64, 4, 3), many)
    assert not is_legal(Tile("wide", 64, 64, 64, 4, 3, splits=2), many)


def test_each_number_of_rows_has_its_paths() -> None:
    paths = {rows: {tile.path for tile in candidates(problem(rows, *SHAPES[0]))} for rows in ROWS}
    assert paths == {
        1: {"gemv", "held"},
        2: {"gemv", "held", "skinny"},
        **{rows: {"held", "skinny"} for rows in (4, 8, 16)},
        32: {"skinny"},
        64: {"skinny", "wide"},
        **{rows: {"wide"} for rows in (128, 512)},
    }


def test_a_short_list_differs_in_columns_steps_and_parts() -> None:
    tiles = candidates(problem(8, *SHAPES[1]))
    assert {tile.block_n for tile in tiles} == {16, 32, 64, 128}
    assert len({tile.block_k for tile in tiles}) >= 3
    assert len({tile.splits for tile in tiles}) >= 4
    # 1024 outputs: without parts of K most multiprocessors would have nothing to do.
    assert all(tile.grid(8, 1024)[0] * tile.splits >= 0.4 * 132 for tile in tiles)


def test_tiles_of_neighbouring_rows_are_shared() -> None:
    """Up to eight rows pad to eight: what is compiled for one number of rows serves the others."""
    few, more = (set(candidates(problem(rows, *SHAPES[0]))[1:]) for rows in (4, 8))
    assert len(few & more) >= 20


def test_what_the_kernels_cannot_run_is_not_legal() -> None:
    eight = problem(8, 4096, 4096, 1, False)
    assert is_legal(Tile("skinny", 8, 64, 128, 4, 2), eight)
    assert not is_legal(Tile("skinny", 8, 64, 128, 4, 2), problem(9, 4096, 4096, 1, False))
    assert not is_legal(Tile("skinny", 8, 8, 128, 4, 2), eight)
    assert not is_legal(Tile("skinny", 64, 256, 512, 4, 6), eight)
    assert not is_legal(Tile("skinny", 8, 64, 128, 4, 2, splits=64), eight)
    assert not is_legal(Tile("gemv", 8, 8, 512, 4, 2), eight)
    assert not is_legal(Tile("gemv", 1, 32, 2048, 2, 2), problem(1, 4096, 4096, 1, False))
    assert is_legal(Tile("held", 8, 16, 1024, 8, 1), eight)
    assert not is_legal(Tile("held", 8, 16, 64, 8, 1), eight)
    assert not is_legal(Tile("held", 32, 16, 1024, 8, 1), problem(32, 4096, 4096, 1, False))
    # Twice as many registers where the next weights are loaded beside them, half of them where two are multiplied.
    assert is_legal(Tile("held", 8, 32, 1024, 8, 1), problem(8, 4096, 1024, 1, False))
    assert not is_legal(Tile("held", 8, 32, 1024, 8, 1), eight)


def test_the_shipped_tiles_are_legal_at_every_number_of_rows_of_their_class() -> None:
    for measured in read_table(FILE.read_text(encoding="utf-8")).values():
        for key, tiles in measured.tiles.items():
            op, *shape = shape_of(key)
            for most, tile in tiles.items():
                of_class = [rows for rows in range(1, int(most) + 1) if rows_class(rows) == int(most)]
                assert of_class[-1] == int(most)
                for rows in of_class:
                    asked = KernelPoint(op, tuple(shape), rows).problem(2, sms=132)
                    assert is_legal(tile, asked), (key, rows)
                    assert tile.splits == 1 or asked.can_split, key


def test_neighbours_are_legal_and_differ_in_one_way() -> None:
    skinny, gemv = Tile("skinny", 8, 64, 128, 4, 4, splits=2), Tile("gemv", 1, 2, 1024, 4, 2)
    down, qkv = problem(8, *SHAPES[1]), problem(1, *SHAPES[0])
    for tile, asked in ((skinny, down), (gemv, qkv)):
        near = neighbours(tile, asked)
        assert len(near) >= 4
        for one in near:
            assert is_legal(one, asked)
            assert sum(value != vars(tile)[name] for name, value in vars(one).items()) == 1
    assert replace(skinny, splits=1) in neighbours(skinny, down)
    assert replace(skinny, stages=5) in neighbours(skinny, down)
    # K has 1024 elements, and one column a program is too few.
    assert not any(one.block_k > 1024 or one.block_n < 2 or one.splits > 1 for one in neighbours(gemv, qkv))


def test_lists_take_turns() -> None:
    assert list(in_turns(["abc", "d", "", "ef"])) == ["a", "d", "e", "b", "f", "c"]
    assert list(in_turns([])) == []


@pytest.mark.parametrize(("path", "rows", "share"), [("skinny", (16, 32, 64), 0.5), ("held", (4, 8, 16), 0.3)])
def test_the_largest_candidates_fit_a_multiprocessor(path: str, rows: tuple[int, ...], share: float) -> None:
    """What is reckoned of a tile's shared memory is no less than what the compiler takes."""
    asked = [problem(m, *SHAPES[0]) for m in rows]
    owner = {tile: one for one in asked for tile in candidates(one) if tile.path == path}
    largest = sorted(owner, key=lambda tile: _buffers(tile, owner[tile]))[-4:]
    cases = [replace(aot.norm_linear(owner[t].rows, 4096, 1024, tile=t), name=str(t)) for t in largest]
    found = [resources.shared_bytes for resources in compile_cases(cases).values()]
    assert len(found) == 4
    reckoned = [_buffers(tile, owner[tile]) + SCRATCH_BYTES for tile in largest]
    assert all(took <= most <= MAX_SHARED_BYTES for took, most in zip(found, reckoned, strict=True))
    assert max(found) > share * MAX_SHARED_BYTES
