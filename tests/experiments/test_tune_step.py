"""The search over a whole step, with steps that are made up: it keeps what the step gains by, and only that."""

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import plain, tune
from experiments.cli import main
from experiments.durable import read_json
from experiments.errors import UserError
from experiments.kernels import step_choices, step_search, step_tuning
from experiments.kernels.candidates import Problem, neighbours
from experiments.kernels.step_bench import StepPlace
from experiments.kernels.step_choices import (
    ATTENTION,
    Choice,
    attention_choices,
    first_choices,
    second_choices,
    step_points,
    trial_of,
    words,
)
from experiments.kernels.step_tuning import changed_dispatch
from experiments.kernels.tuning import KernelPoint
from experiments.models import Model, find_model
from experiments.step_records import StepRun
from experiments.tune import Options, parse, tune_steps
from experiments.tuned_rows import RunsAt
from variants.kernels.attention_cut import Cut
from variants.kernels.tile_table import GpuTable, Trial, read_table
from variants.kernels.tiles import Tile

BASE_US = 1000.0
SIZES = find_model("qwen3-0.6b").sizes
# Of the QKV product at 8 rows.
HEURISTIC = words(step_points(SIZES, 8, ("norm_linear",))["qkv"].problem(2, 132).heuristic())
QKV, DOWN = "norm_linear 4096x1024", "linear_add 1024x3072"
Cost = Callable[[Trial], float]


class FakeSteps:
    """Steps that take what `cost_us` says, with seeded noise."""

    def __init__(self, cost_us: Cost, noise: float = 0.0, wrong: Callable[[Choice], str] = lambda choice: "") -> None:
        self.points: Mapping[str, KernelPoint] = {}
        self.own: Mapping[str, Choice] = {}
        self.num_kv_heads, self.max_context, self.sms, self.hopper = 8, 1280, 132, False
        self._cost_us, self._noise, self._rng = cost_us, noise, random.Random(0)
        self.why_wrong = wrong
        self.compiled: list[Choice] = []
        self.broken: set[str] = set()
        self.off: set[str] = set()

    def place(self, sizes: Mapping[str, Any], batch: int, ops: Sequence[str]) -> "FakeSteps":
        self.points = step_points(sizes, batch, ops)
        own = {
            site: Choice(site, point.key, False)
            if site in self.off
            else Choice(site, point.key, True, self.problem(point).heuristic())
            for site, point in self.points.items()
        }
        self.own = {**own, ATTENTION: Choice(ATTENTION, ATTENTION, True, cut=Cut(8))}
        return self

    def problem(self, point: KernelPoint) -> Problem:
        return point.problem(2, self.sms)

    def compile(self, choices: Sequence[Choice], ends_at: float) -> set[Choice]:
        self.compiled += choices
        return {choice for choice in choices if choice.site not in self.broken}

    def time_us(self, trial: Trial) -> list[float]:
        cost_us = self._cost_us(trial)
        return [cost_us * self._rng.uniform(1 - self._noise, 1 + self._noise) for _ in range(4)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at it takes a second."""
    ticks = itertools.count()
    for module in (tune, step_search, step_tuning):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def search(folder: Path, *made: FakeSteps, **options: Any) -> StepRun:
    """The run over as many points as there are steps, its table and log in `folder`."""
    steps = iter(made)
    points = [(8, 1024), (64, 1024), (1, 128)][: len(made)]
    asked = Options(by="step", points=tuple(points), table=str(folder / "tiles.json"), **options)

    def make(place: StepPlace, model: Model, ops: Sequence[str]) -> FakeSteps:
        return next(steps).place(model.sizes, place.batch, ops)

    run = StepRun(1, "run", "2026-11-28T00:00:00+00:00", "fusebench tune by=step", "0a1b2c3", "X", {})
    return tune_steps(asked, run, folder, make)


def table(folder: Path) -> GpuTable:
    return read_table((folder / "tiles.json").read_text())["X"]


def skinny_qkv(trial: Trial) -> float:
    """The QKV product gains by the skinny path, `down` by parts of K, and both together less than the first alone."""
    qkv, down = trial.tiles.get(QKV), trial.tiles.get(DOWN)
    cost = BASE_US - (50 if qkv and qkv.path == "skinny" else 0)
    if down and down.splits > 1:
        cost += 30 if qkv and qkv.path == "skinny" else -20
    return cost


def test_what_the_step_gains_by_is_kept_and_written(tmp_path: Path) -> None:
    [cell] = search(tmp_path, FakeSteps(skinny_qkv)).cells
    assert [(kept.site, kept.before_us, kept.after_us) for kept in cell.kept] == [("qkv", 1000.0, 950.0)]
    assert cell.speedup.value == pytest.approx(1000 / 950)
    assert len(cell.start_us) == len(cell.end_us) == step_search.CONFIRMING_ROUNDS
    [(key, tiles)] = table(tmp_path).tiles.items()
    assert key == QKV
    assert tiles["8"].path == "skinny"
    # Alone parts of `down` would have gained.
    assert any(t.site == "down" and t.step_us and t.step_us > 950 for t in cell.tried)
    assert table(tmp_path).fused_up_to_rows == {}


def test_the_log_is_whole_and_says_where_it_is_from(tmp_path: Path) -> None:
    run = search(tmp_path, FakeSteps(skinny_qkv), layers=4)
    assert plain.decode(StepRun, read_json(tmp_path / "tune.json")) == run
    assert (run.gpu, run.commit, run.created[:10]) == ("X", "0a1b2c3", "2026-11-28")
    assert (run.cells[0].model, run.cells[0].batch, run.cells[0].layers) == ("qwen3-0.6b", 8, 4)


def test_noise_alone_changes_nothing(tmp_path: Path) -> None:
    [cell] = search(tmp_path, FakeSteps(lambda trial: BASE_US, noise=0.02)).cells
    assert cell.noise
    assert not (tmp_path / "tiles.json").exists()


def test_a_change_that_does_not_stand_up_to_the_start_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was gained while the search went on is gone at its end."""
    calls = itertools.count()

    def drifting(trial: Trial) -> float:
        return BASE_US - (100 if next(calls) < 30 and QKV in trial.tiles else 0)

    [cell] = search(tmp_path, FakeSteps(drifting), ops=("norm_linear",)).cells
    assert [kept.site for kept in cell.kept] == ["qkv"]
    assert cell.start_us == cell.end_us
    assert not (tmp_path / "tiles.json").exists()
    assert "nothing is written" in capsys.readouterr().out


def test_a_wrong_tile_is_never_kept_however_fast(tmp_path: Path) -> None:
    def cost_us(trial: Trial) -> float:
        tile = trial.tiles.get(QKV)
        return {2: 800.0, 3: 900.0}.get(tile.stages, BASE_US) if tile else BASE_US

    def wrong(choice: Choice) -> str:
        return "error 1 beyond 0.1" if choice.tile and choice.tile.stages == 2 else ""

    [cell] = search(tmp_path, FakeSteps(cost_us, wrong=wrong)).cells
    assert table(tmp_path).tiles[QKV]["8"].stages == 3
    assert any(tried.reason == "wrong: error 1 beyond 0.1" for tried in cell.tried)


def test_what_did_not_compile_or_does_not_run_is_passed_over(tmp_path: Path) -> None:
    def cost_us(trial: Trial) -> float:
        if tile := trial.tiles.get(QKV):
            raise RuntimeError(f"out of resource: {tile.stages}\nmore")
        return BASE_US - (100 if DOWN in trial.tiles else 0)

    steps = FakeSteps(cost_us)
    steps.broken = {"down"}
    [cell] = search(tmp_path, steps).cells
    assert cell.kept == ()
    assert {tried.site for tried in cell.tried} == {"qkv", "gate_up", "o", "lm_head", ATTENTION}
    failed = [tried for tried in cell.tried if tried.step_us is None]
    assert {tried.site for tried in failed} == {"qkv"}
    assert all(
        tried.reason.startswith("RuntimeError: out of resource") and "more" not in tried.reason for tried in failed
    )


def test_the_second_pass_tries_neighbours_and_takes_a_change_back(tmp_path: Path) -> None:
    """Once `down` is off the tile that was kept before it costs more than none at all."""

    def cost_us(trial: Trial) -> float:
        tile, off = trial.tiles.get(QKV), trial.fused.get(DOWN) is False
        changed = tile is not None and words(tile) != HEURISTIC
        return BASE_US - (50 if changed else 0) - (100 if off else 0) + (80 if changed and off else 0)

    [cell] = search(tmp_path, FakeSteps(cost_us)).cells
    assert [(kept.site, kept.choice) for kept in cell.kept][1:] == [("down", "off"), ("qkv", HEURISTIC)]
    assert not cell.end_us[0] > 900
    assert table(tmp_path).tiles == {}
    assert table(tmp_path).fused_up_to_rows == {DOWN: 32}
    assert table(tmp_path).apart == {DOWN: [8]}


def test_what_runs_already_is_not_tried(tmp_path: Path) -> None:
    """A kernel that is off cannot gain by being turned off, whatever the clock says."""
    steps = FakeSteps(lambda trial: BASE_US)
    steps.off = {"gate_up"}
    [cell] = search(tmp_path, steps).cells
    assert "off" not in [tried.choice for tried in cell.tried if tried.site == "gate_up"]
    assert ("qkv", HEURISTIC) not in [(tried.site, tried.choice) for tried in cell.tried]
    assert not set(steps.own.values()) & set(steps.compiled)


def test_a_bound_is_written_once_all_batches_are_searched(tmp_path: Path) -> None:
    def off_is_faster(trial: Trial) -> float:
        return BASE_US - (100 if trial.fused.get(DOWN) is False else 0)

    fine = FakeSteps(lambda trial: BASE_US)
    search(tmp_path, fine, FakeSteps(off_is_faster), FakeSteps(lambda trial: BASE_US))
    assert table(tmp_path).fused_up_to_rows == {DOWN: 8}
    (tmp_path / "tiles.json").unlink()

    def out_of_memory(trial: Trial) -> float:
        raise RuntimeError("out of memory")

    run = search(tmp_path, FakeSteps(off_is_faster), FakeSteps(out_of_memory))
    assert [cell.batch for cell in run.cells] == [8]
    assert not (tmp_path / "tiles.json").exists()


def test_dispatch_changes_where_a_search_has_changed_it_and_nowhere_else() -> None:
    on, off, turned_off, turned_on = (True, True), (False, False), (True, False), (False, True)
    known = RunsAt(32)

    def changed(by_rows: dict[int, tuple[bool, bool]], *others: int) -> RunsAt | None:
        return changed_dispatch({"a": by_rows}, {*by_rows, *others}, lambda key: known).get("a")

    assert changed({1: on, 8: on, 64: off}) is None
    assert changed({1: on, 8: turned_off, 64: on}) == RunsAt(64, (2, 4, 8))
    assert changed({1: on, 8: on, 64: turned_on}) == RunsAt(64)
    assert changed({1: on, 8: on, 64: turned_off}) == RunsAt(8)
    assert changed({1: turned_off}) == RunsAt(32, (1,))
    assert changed({128: turned_on}) == RunsAt(128, (64,)), "not measured, and off until now"
    assert changed({1: turned_off}, 8) is None, "one of the batches was not searched"
    assert RunsAt(128, (64,)).but({64: True}) == RunsAt(128)


def test_attentions_cut_is_told_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cost_us(trial: Trial) -> float:
        return skinny_qkv(trial) - (40 if trial.cut == Cut(6) else 0)

    [cell] = search(tmp_path, FakeSteps(cost_us)).cells
    assert [kept.site for kept in cell.kept] == ["qkv", ATTENTION]
    assert (cell.end_us[0], cell.attention_us[0]) == (950.0, 910.0)
    assert table(tmp_path).tiles.keys() == {QKV}
    assert "attention's cut besides gives 1.0440x" in capsys.readouterr().out


def test_when_time_is_up_what_was_kept_is_confirmed_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, other = FakeSteps(skinny_qkv), FakeSteps(skinny_qkv)
    run = search(tmp_path, steps, other, time_budget_s=60.0)
    few = [len(cell.tried) for cell in run.cells]
    assert few
    assert all(number < 100 for number in few)
    assert all(len(cell.start_us) == step_search.CONFIRMING_ROUNDS for cell in run.cells)
    late = search(tmp_path, FakeSteps(skinny_qkv), FakeSteps(skinny_qkv), time_budget_s=1.0)
    assert len(late.cells) < 2
    assert "time is up" in capsys.readouterr().out


def test_the_tables_tiles_are_tried_at_other_shapes() -> None:
    [(site, point)] = step_points(SIZES, 8, ("norm_linear",)).items()
    odd = Tile("skinny", 8, 32, 512, 2, 3)
    beside = Tile("skinny", 16, 16, 512, 2, 3)
    other = Tile("skinny", 8, 16, 64, 2, 2)
    known = {"Y": GpuTable({"norm_linear 64x64": {"16": beside, "8": odd}, "lm_head 64x64": {"8": other}})}
    problem = point.problem(2, 132)
    first = first_choices(site, point, problem, known)
    assert first[0].label == "off"
    assert [choice.tile for choice in first[1:4]] == [problem.heuristic(), odd, replace(beside, block_m=8)]
    assert len(first) == len(set(first)) == 1 + step_choices.MOST_TILES
    took = {choice: float(number) for number, choice in enumerate(reversed(first))}
    own = first[1]
    second = second_choices(point, problem, took, own, own)
    assert second[0] == own
    assert second[1:5] == first[:-5:-1]
    again = {choice.tile for choice in second[:5]}
    assert [choice.tile for choice in second[5:]] == [
        tile for tile in neighbours(problem.heuristic(), problem) if tile not in again
    ]
    off = Choice(site, point.key, False)
    best = first[-1].tile
    assert best
    assert neighbours(best, problem)[0] in [choice.tile for choice in second_choices(point, problem, took, off, off)]


def test_a_gemv_of_the_rows_beside_is_cut_for_these() -> None:
    """One row more computes what there is not, one less is not legal."""
    of_one, of_two = Tile("gemv", 1, 2, 64, 2, 2), Tile("gemv", 2, 4, 64, 2, 2)
    known = {"Y": GpuTable({"norm_linear 64x64": {"1": of_one, "2": of_two}})}
    for rows, tiles in ((1, [of_one, of_two]), (2, [of_two, of_one])):
        [(site, point)] = step_points(SIZES, rows, ("norm_linear",)).items()
        first = first_choices(site, point, point.problem(2, 132), known)
        tried = [choice.tile for choice in first if choice.tile]
        assert tried[1:3] == [replace(tile, block_m=rows) for tile in tiles]


def test_many_rows_can_have_the_product_for_hopper_or_a_tile() -> None:
    points = step_points(SIZES, 128, ("norm_linear", "gate_up_silu", "linear_add"))
    first = {site: first_choices(site, point, point.problem(2, 132), {}) for site, point in points.items()}
    assert [[choice.label for choice in first[site][:2]] for site in ("qkv", "gate_up")] == [["off", "on"]] * 2
    assert first["down"][1].tile == points["down"].problem(2, 132).heuristic()
    assert trial_of([first["qkv"][1]]) == Trial(fused={QKV: True})


def test_choices_become_one_trial() -> None:
    tile = Tile("gemv", 1, 4, 1024, 4, 2)
    choices = [
        Choice("qkv", "a", True, tile),
        Choice("o", "b", False),
        Choice(ATTENTION, ATTENTION, True, cut=Cut(3)),
    ]
    assert trial_of(choices) == Trial({"a": tile}, {"a": True, "b": False, ATTENTION: True}, Cut(3))
    labels = ["gemv 1x4x1024, 4 warps, 2 stages", "off", "3 parts, tile 64, 4 warps, 2 stages"]
    assert [choice.label for choice in choices] == labels


def test_attention_is_cut_no_finer_than_its_keys_and_the_gpu_allow() -> None:
    cuts = [choice.cut for choice in attention_choices(64, 8, 1280, 132) if choice.cut]
    assert {cut.splits for cut in cuts} == {1, 2}
    assert len(set(cuts)) == len(cuts)
    assert {choice.cut.splits for choice in attention_choices(1, 8, 320, 132) if choice.cut} == {1, 2, 3, 4, 5}
    rings = [
        choice.cut for choice in attention_choices(7, 8, 1280, 132, hopper=True) if choice.cut and choice.cut.hopper
    ]
    assert {cut.splits for cut in rings} == {1, 2}
    assert {cut.stages for cut in rings} == {2, 3, 4, 6}
    assert Choice(ATTENTION, ATTENTION, True, cut=rings[0]).label.endswith("for Hopper")


def test_equal_shapes_are_searched_once() -> None:
    square = {**SIZES, "intermediate_size": SIZES["num_heads"] * SIZES["head_dim"]}
    assert list(step_points(square, 8, ("linear_add",))) == ["o"]
    assert list(step_points(SIZES, 8, tune.OPS)) == ["qkv", "gate_up", "o", "down", "lm_head"]


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("by=layer", "there is no 'layer'"),
        ("points=[[3,128]]", r"points=[[3,128]] is no batch, a power of two, and its context"),
        ("points=[[1,128,2]]", "is no batch"),
        ("points=[]", "is no batch"),
        ("points=[[1,128],[1,256]]", "tiles are looked up by rows alone"),
    ],
)
def test_bad_points_are_named(argument: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "by=step", argument]) == 2
    assert complaint in capsys.readouterr().err
    assert parse([]).by == "kernel"


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    options = Options(by="step", models=("tiny",), points=((1, 4090),), table=str(tmp_path / "tiles.json"))
    run = StepRun(1, "run", "", "", "", "X", {})
    with pytest.raises(UserError, match=r"4090 tokens and .* do not fit tiny's 4096"):
        tune_steps(options, run, tmp_path, lambda *_: FakeSteps(skinny_qkv))


@pytest.mark.gpu
def test_on_a_gpu_the_search_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model of no account, with two tiles a kernel and as many cuts."""
    monkeypatch.undo()
    monkeypatch.setattr(step_choices, "MOST_TILES", 2)
    monkeypatch.setattr(step_choices, "MOST_AGAIN", 1)
    monkeypatch.setattr(step_choices, "CUTS", (1, 2))
    asked = ["tune", "by=step", "models=[tiny]", "points=[[1,16],[8,300]]", "time_budget_s=240"]
    assert main([*asked, f"table={tmp_path / 'tiles.json'}", f"results_dir={tmp_path}"]) == 0
    [log] = tmp_path.glob("tune/*/tune.json")
    run = plain.decode(StepRun, read_json(log))
    assert [(cell.batch, cell.layers) for cell in run.cells] == [(1, 2), (8, 2)]
    for cell in run.cells:
        timed = [tried for tried in cell.tried if tried.step_us]
        assert {tried.site for tried in timed} == {"qkv", "gate_up", "o", "down", "lm_head", ATTENTION}
        assert min(cell.start_us) > 0
    if (tmp_path / "tiles.json").exists():
        json.loads((tmp_path / "tiles.json").read_text())
