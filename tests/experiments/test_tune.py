"""The search for tiles, with times that are made up: it finds what is faster, and keeps only what is beyond noise."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import tune as tuning
from experiments.cli import main
from experiments.kernels.linear_cases import LinearAdd
from experiments.kernels.measure import Bench
from experiments.kernels.search import Found, Search, is_legal, neighbours
from experiments.stats import estimate
from experiments.tune import Options, fused_up_to_rows, keep, parse, tune
from variants.kernels.tile_table import read_table
from variants.kernels.tiles import Tile, linear_tile

CPU = torch.device("cpu")
UNFUSED_US = 100.0
launched: list[Tile | None] = []


class Recorded(LinearAdd):
    """A case whose launches leave their tile behind; one tile of them is wrong."""

    def launch(self, how: Any, pdl: bool = False, tile: Tile | None = None) -> Any:
        launched.append(tile)
        y, partials = super().launch("twin")
        return (y * 1.1 if tile and tile.num_warps == 8 else y), partials

    def launch_unfused(self, how: Any) -> Any:
        launched.append(None)
        return super().launch_unfused("twin")


def timer_of(cost_us: Callable[[Tile], float], noise: float = 0.0) -> Any:
    """Times by tile, with seeded noise."""
    rng = random.Random(0)

    def timer(contenders: Mapping[str, Sequence[Any]], repeats: int) -> dict[str, list[float]]:
        samples = {}
        for name, launches in contenders.items():
            launches[0]()
            tile = launched[-1]
            base = UNFUSED_US if tile is None else cost_us(tile)
            samples[name] = [base * rng.uniform(1 - noise, 1 + noise) for _ in range(repeats)]
        return samples

    return timer


def bench(timer: Any) -> Bench:
    return Bench(CPU, "bfloat16", timer, repeats=10, l2=1)


def case(rows: int = 8) -> Recorded:
    return Recorded.draw((64, 512), rows, torch.bfloat16, CPU, plain=True)


def test_the_search_climbs_to_the_fastest_legal_tile() -> None:
    start = case().heuristic_tile()
    wanted = replace(start, block_n=start.block_n // 2, stages=start.stages - 1)

    def cost_us(tile: Tile) -> float:
        return 20 + abs(tile.block_n - wanted.block_n) + 5 * abs(tile.stages - wanted.stages)

    found = Search(bench(timer_of(cost_us)), case()).run()
    assert found.tile == wanted
    assert found.gain.value == pytest.approx(cost_us(start) / 20)
    assert found.speedup.value == pytest.approx(UNFUSED_US / 20)
    assert found.pays
    assert found.tried < 40


def test_what_is_faster_by_chance_alone_is_not_kept() -> None:
    found = Search(bench(timer_of(lambda tile: 120.0, noise=0.05)), case()).run()
    assert found.tile is None
    assert not found.pays


def test_a_wrong_tile_is_never_chosen_however_fast() -> None:
    assert case().heuristic_tile().num_warps == 4
    found = Search(bench(timer_of(lambda tile: 50.0 / tile.num_warps)), case()).run()
    assert found.tile is None
    assert found.gain.value == 1


def test_a_tile_that_does_not_compile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Recorded.launch

    def launch(self: Recorded, how: Any, pdl: bool = False, tile: Tile | None = None) -> Any:
        if tile and tile.stages == 3:
            raise RuntimeError("out of resource: shared memory")
        return right(self, how, pdl, tile)

    monkeypatch.setattr(Recorded, "launch", launch)
    found = Search(bench(timer_of(lambda tile: 10.0 * tile.stages)), case()).run()
    assert found.tile is None


@pytest.mark.parametrize("rows", [1, 2, 8, 64, 512])
@pytest.mark.parametrize("matrices", [1, 2])
def test_the_heuristics_tiles_and_only_sound_ones_are_legal(rows: int, matrices: int) -> None:
    for n, k in ((1024, 3072), (4096, 1024), (960, 576), (12288, 4096)):
        tile = linear_tile(rows, n, k, 2, 132, matrices, can_split=matrices == 1)
        assert is_legal(tile, rows, k, 2, matrices)
        for changed in neighbours(tile, can_split=matrices == 1):
            assert changed != tile
            if is_legal(changed, rows, k, 2, matrices):
                assert all(b & (b - 1) == 0 and b > 0 for b in (changed.block_m, changed.block_n, changed.block_k))
                assert changed.path == "wide" or changed.block_m >= rows
    assert not is_legal(Tile("skinny", 8, 64, 128, 4, 2), 9, 512, 2, 1)
    assert not is_legal(Tile("skinny", 64, 256, 512, 4, 6), 64, 4096, 2, 1)


def test_a_kernel_is_chosen_up_to_the_first_rows_at_which_it_does_not_pay() -> None:
    assert fused_up_to_rows({1: True, 2: True, 4: False, 8: True}) == 2
    assert fused_up_to_rows({1: False, 2: True}) == 0
    assert fused_up_to_rows({2: True, 4: True}) is None
    assert fused_up_to_rows({1: True, 4: True}) is None


def found_of(tile: Tile | None, speedup: float) -> Found:
    return Found(tile, estimate([1.1] * 3), estimate([speedup] * 3), 1)


def test_the_table_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    file, one, two = tmp_path / "tiles.json", Tile("gemv", 1, 8, 512, 4, 2), Tile("skinny", 8, 32, 256, 4, 3)
    file.write_text('{"schema": 1, "gpus": {"Y": {"tiles": {}, "fused_up_to_rows": {"lm_head 5x3": 7}}}}')
    keep(file, "X", "linear_add 64x512", {1: found_of(one, 2.0), 2: found_of(None, 1.0), 4: found_of(None, 0.9)})
    keep(file, "X", "linear_add 64x512", {8: found_of(two, 0.5)})
    table = read_table(file.read_text())
    assert table["X"].tiles == {"linear_add 64x512": {"1": one, "8": two}}
    assert table["X"].fused_up_to_rows == {"linear_add 64x512": 2}
    assert table["Y"].fused_up_to_rows == {"lm_head 5x3": 7}
    keep(file, "X", "linear_add 64x512", {1: found_of(None, 1.0), 8: found_of(None, 1.0)})
    assert read_table(file.read_text())["X"].tiles == {}
    assert list(tmp_path.iterdir()) == [file]


def test_every_shape_is_searched_once_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tiles.json"
    file.write_text('{"schema": 1, "gpus": {}}')
    searched = []

    def search_shape(op: str, shape: tuple[int, ...], rows: Sequence[int], _bench: Bench) -> dict[int, Found]:
        searched.append((op, shape))
        return {1: found_of(None, 1.5)}

    monkeypatch.setattr(tuning, "search_shape", search_shape)
    tune(Options(models=("tiny", "tiny"), ops=("linear_add", "lm_head"), table=str(file)), bench(None), "X")
    assert searched == [("linear_add", (64, 64)), ("linear_add", (64, 160)), ("lm_head", (256, 64))]
    bounds = {"linear_add 64x64": 1, "linear_add 64x160": 1, "lm_head 256x64": 1}
    assert json.loads(file.read_text())["gpus"]["X"] == {"fused_up_to_rows": bounds, "tiles": {}}


def test_a_shape_is_searched_at_each_number_of_rows() -> None:
    found = tuning.search_shape(
        "norm_linear", (32, 64), (4, 1), bench(lambda contenders, n: {c: [1.0] * n for c in contenders})
    )
    assert list(found) == [1, 4]
    assert all(result.tile is None and result.pays for result in found.values())


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("rows=12", "rows=12 is no power of two"),
        ("ops=qkv_post", "there is no 'qkv_post'"),
        ("dtype=float32", "float32"),
    ],
)
def test_bad_input_is_named(argument: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", argument]) == 2
    assert complaint in capsys.readouterr().err


def test_without_a_gpu_there_is_nothing_to_tune(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["tune"]) == 2
    assert "tune needs a GPU" in capsys.readouterr().err
    assert parse([]).rows == (1, 2, 4, 8, 16, 32, 64)


def test_a_table_that_does_not_exist_yet_is_made(tmp_path: Path) -> None:
    """In a folder that does not either."""
    file, tile = tmp_path / "new" / "tiles.json", Tile("gemv", 1, 8, 512, 4, 2)
    keep(file, "X", "linear_add 64x512", {1: found_of(tile, 2.0)})
    assert read_table(file.read_text())["X"].tiles == {"linear_add 64x512": {"1": tile}}
