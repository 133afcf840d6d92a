"""The search for tiles, with times that are made up: it finds what is faster, and keeps only what is beyond noise."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments import tune as command
from experiments.cli import main
from experiments.compose import load_yaml
from experiments.kernels import tuning
from experiments.kernels.compiling import Compilation
from experiments.kernels.linear_cases import LinearAdd
from experiments.kernels.measure import Bench
from experiments.kernels.search import Found, Search
from experiments.kernels.tuning import KernelPoint
from experiments.stats import estimate
from experiments.tune import Options, keep, parse, runs_at, tune
from experiments.tuned_rows import RunsAt
from variants.kernels.tile_table import read_table
from variants.kernels.tiles import Tile

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


def case() -> Recorded:
    return Recorded.draw(POINT.shape, POINT.rows, torch.bfloat16, CPU, plain=True)


POINT = KernelPoint("linear_add", (64, 512), rows=32)
HEURISTIC = POINT.problem(itemsize=2, sms=132).heuristic()
TILES = [HEURISTIC, *(replace(HEURISTIC, **changes) for changes in ({"stages": 3}, {"stages": 2}, {"num_warps": 8}))]


def search(cost_us: Callable[[Tile], float], noise: float = 0.0, tiles: Sequence[Tile] = TILES) -> Found:
    timer = timer_of(cost_us, noise)
    return Search(bench(timer), timer, case()).run(tiles)


def test_the_search_finds_the_fastest_and_confirms_it() -> None:
    found = search(lambda tile: 10.0 * tile.stages)
    assert found.tile == TILES[2]
    assert found.gain.value == pytest.approx(2)
    assert found.speedup.value == pytest.approx(UNFUSED_US / 20)
    assert found.pays
    assert found.tried == 4


def test_what_is_faster_by_chance_alone_is_not_kept() -> None:
    found = search(lambda tile: 120.0, noise=0.05)
    assert found.tile is None
    assert not found.pays


def test_a_wrong_tile_is_never_chosen_however_fast() -> None:
    assert HEURISTIC.num_warps == 4
    found = search(lambda tile: 50.0 / tile.num_warps)
    assert found.tile is None
    assert found.gain.value == 1


def test_a_tile_that_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Recorded.launch

    def launch(self: Recorded, how: Any, pdl: bool = False, tile: Tile | None = None) -> Any:
        if tile and tile.stages == broken:
            raise ValueError("out of resource: shared memory")
        return right(self, how, pdl, tile)

    monkeypatch.setattr(Recorded, "launch", launch)
    broken = 2
    assert search(lambda tile: 10.0 * tile.stages).tile == TILES[1]
    broken = HEURISTIC.stages
    with pytest.raises(RuntimeError, match="the heuristic's tile is wrong or does not run"):
        search(lambda tile: 10.0 * tile.stages)


def test_fused_launches_depend_on_their_predecessors_and_unfused_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    right = Recorded.launch

    def launch(self: Recorded, how: Any, pdl: bool = False, tile: Tile | None = None) -> Any:
        seen.append(pdl)
        return right(self, how, pdl, tile)

    monkeypatch.setattr(Recorded, "launch", launch)
    timer = timer_of(lambda tile: 10.0)
    Search(replace(bench(timer), pdl=True), timer, case()).run(TILES)
    assert seen
    assert all(seen)
    assert Options().pdl == bool(load_yaml("variant", "fused").runtime.pdl)


def test_a_kernel_runs_where_it_pays_if_all_rows_were_measured() -> None:
    assert runs_at({1: True, 2: True, 4: False, 8: True, 16: False}) == RunsAt(8, (4,))
    assert runs_at({1: False, 2: True}) == RunsAt(2, (1,))
    assert runs_at({1: False}) == RunsAt(0)
    assert runs_at({2: True, 4: True}) is None
    assert runs_at({1: True, 4: True}) is None


def found_of(tile: Tile | None, speedup: float) -> Found:
    return Found(tile, estimate([1.1] * 3), estimate([speedup] * 3), 1)


def test_the_table_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    file, one, two = tmp_path / "tiles.json", Tile("gemv", 1, 8, 512, 4, 2), Tile("skinny", 8, 32, 256, 4, 3)
    others = {"Y": {"tiles": {}, "fused_up_to_rows": {"lm_head 5x3": 7}}}
    many_rows = {"tiles": {}, "fused_up_to_rows": {}, "fused_from_rows": {"gate_up_silu 64x32": 256}}
    many_rows["apart"] = {"linear_add 64x512": [2], "gate_up_silu 64x32": [8]}
    file.write_text(json.dumps({"schema": 1, "gpus": others | {"X": many_rows}}))
    keep(file, "X", "linear_add 64x512", {1: found_of(one, 2.0), 2: found_of(None, 1.0), 4: found_of(None, 0.9)})
    keep(file, "X", "linear_add 64x512", {8: found_of(two, 0.5)})
    table = read_table(file.read_text())
    assert table["X"].tiles == {"linear_add 64x512": {"1": one, "8": two}}
    assert table["X"].fused_up_to_rows == {"linear_add 64x512": 2}
    assert table["X"].fused_from_rows == {"gate_up_silu 64x32": 256}
    assert table["X"].apart == {"gate_up_silu 64x32": [8]}, "a new bound knows better"
    assert table["Y"].fused_up_to_rows == {"lm_head 5x3": 7}
    keep(file, "X", "linear_add 64x512", {1: found_of(None, 0.5)}, whole=False)
    assert read_table(file.read_text())["X"].fused_up_to_rows == {"linear_add 64x512": 2}
    keep(file, "X", "linear_add 64x512", {1: found_of(None, 1.0), 8: found_of(None, 1.0)})
    assert read_table(file.read_text())["X"].tiles == {}
    assert list(tmp_path.iterdir()) == [file]


def everything(jobs: Iterable[Compilation], ends_at: float) -> set[Compilation]:
    return set(jobs)


def tuned(file: Path, monkeypatch: pytest.MonkeyPatch, compile_: Any = everything, **options: Any) -> list[Any]:
    """The (op, shape, rows, number of tiles) that were searched, with searches that take a second and find nothing."""
    now_s, searched = [0.0], []

    def search(point: KernelPoint, tiles: Sequence[Tile], _bench: Bench, _quick: Any) -> Found:
        now_s[0] += 1
        searched.append((point.op, point.shape, point.rows, len(tiles)))
        return found_of(None, 1.5)

    monkeypatch.setattr(tuning, "search_point", search)
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    tune(Options(table=str(file), **options), bench(None), "X", compile_, None)  # type: ignore[arg-type]
    return searched


def test_every_point_is_searched_once_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tiles.json"
    searched = tuned(file, monkeypatch, models=("tiny", "tiny"), ops=("linear_add", "lm_head"), rows=(2, 1, 1))
    shapes = [("linear_add", (64, 64)), ("linear_add", (64, 160)), ("lm_head", (256, 64))]
    assert [found[:3] for found in searched] == [(*shape, rows) for rows in (1, 2) for shape in shapes]
    bounds = {"linear_add 64x64": 2, "linear_add 64x160": 2, "lm_head 256x64": 2}
    assert json.loads(file.read_text()) == {"schema": 1, "gpus": {"X": {"fused_up_to_rows": bounds, "tiles": {}}}}


def test_when_time_is_up_what_matters_most_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[float] = []

    def compile_(jobs: Iterable[Compilation], ends_at: float) -> set[Compilation]:
        ends.append(ends_at)
        return set(jobs)

    file = tmp_path / "tiles.json"
    searched = tuned(file, monkeypatch, compile_, models=("tiny",), ops=("linear_add",), time_budget_s=7.0)
    assert [rows for _, _, rows, _ in searched] == [1, 1, 8, 8, 64, 64, 2]
    assert ends == [7.0 * command.COMPILING_SHARE]
    assert "time is up: 7 of 14 points were not measured" in capsys.readouterr().out
    # Rows that were not reached could be those at which fusing stops to pay.
    assert json.loads(file.read_text())["gpus"]["X"] == {"fused_up_to_rows": {}, "tiles": {}}


def test_what_did_not_compile_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Compilation] = []

    def compile_(jobs: Iterable[Compilation], ends_at: float) -> set[Compilation]:
        asked.extend(jobs)
        return set(asked[:3])

    options: dict[str, Any] = {"models": ("qwen3-0.6b",), "ops": ("norm_linear",), "rows": (2, 8, 4)}
    searched = tuned(tmp_path / "tiles.json", monkeypatch, compile_, **options)
    # The heuristic's tiles of the two shapes at 8 rows are compiled first, then the next likeliest.
    assert [found[1:] for found in searched[:2]] == [((4096, 1024), 8, 2), ((6144, 1024), 8, 1)]
    assert {job.form for job in asked} == {"chained"}
    assert len(asked) == len(set(asked))
    assert len(asked) < 2 * 3 * 24
    # Tiles of four rows pad to eight and are the same; those of two rows are others.
    assert [found[2] for found in searched] == [8, 8, 4, 4]
    assert "norm_linear 4096x1024, 2 rows: not measured: the heuristic's Tile" in capsys.readouterr().out


def test_a_point_that_cannot_be_measured_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(point: KernelPoint, *_: Any) -> Found:
        if point.rows == 8:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return found_of(None, 1.5)

    monkeypatch.setattr(tuning, "search_point", search)
    options = Options(models=("tiny",), ops=("lm_head",), rows=(1, 8), table=str(tmp_path / "tiles.json"))
    tune(options, bench(None), "X", everything, None)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "lm_head 256x64, 8 rows: not measured: out of memory" in said
    assert "lm_head 256x64, 1 rows: the heuristic stays" in said


def test_a_point_is_searched_in_the_form_that_the_engine_runs() -> None:
    assert [KernelPoint(op, (32, 64), 1).kind.FORM for op in command.OPS] == ["chained", "alone", "chained", "chained"]
    quick = bench(lambda contenders, n: {c: [1.0] * n for c in contenders})
    point = KernelPoint("norm_linear", (32, 64), 4)
    [tiles] = tuning.tiles_to_try([point], quick).values()
    found = tuning.search_point(point, tiles[:2], quick, quick.timer)
    assert found.tile is None
    assert found.pays


def test_blank_inputs_have_the_shapes_of_drawn_ones() -> None:
    for op in command.OPS:
        kind = KernelPoint(op, (32, 64), 1).kind
        blank, drawn = kind.blank((32, 64), 3, torch.bfloat16, CPU), kind.draw((32, 64), 3, torch.bfloat16, CPU, True)
        for field in fields(kind):
            one, other = getattr(blank, field.name), getattr(drawn, field.name)
            assert (one is None) == (other is None)
            assert one is None or (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("rows=12", "rows=12 is no power of two"),
        ("ops=qkv_post", "there is no 'qkv_post'"),
        ("dtype=float32", "float32"),
        ("time_budget_s=-1", "time_budget_s=-1 must not be negative"),
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


def test_a_table_that_cannot_be_written_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "resolve_device", lambda *_: "cuda")
    monkeypatch.setattr(command, "run_steps", pytest.fail)
    assert main(["tune", "by=step", f"table={tmp_path}"]) == 2
    assert f"table={tmp_path} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("others", [None, 0, 2])
def test_whoever_shares_the_gpu_is_told_before_the_search(
    others: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = torch.empty(1)
    monkeypatch.setattr(command, "resolve_device", lambda *_: "cuda")
    monkeypatch.setattr("torch.zeros", lambda *_, **__: own)
    monkeypatch.setattr("experiments.measuring.presence.others_on_gpu", lambda device: others)
    monkeypatch.setattr(command, "run_steps", lambda *_: print("searching"))
    assert main(["tune", "by=step", f"table={tmp_path}/tiles.json"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    if others:
        assert first.startswith("tune: other processes are on the GPU: 2")
        assert rest == ["searching"]
    else:
        assert (first, rest) == ("searching", [])


def test_a_table_that_does_not_exist_yet_is_made(tmp_path: Path) -> None:
    """In a folder that does not either."""
    file, tile = tmp_path / "new" / "tiles.json", Tile("gemv", 1, 8, 512, 4, 2)
    keep(file, "X", "linear_add 64x512", {1: found_of(tile, 2.0)})
    assert read_table(file.read_text())["X"].tiles == {"linear_add 64x512": {"1": tile}}
