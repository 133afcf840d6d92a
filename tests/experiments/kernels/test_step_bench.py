"""Decode steps of the fused engine as the search times them; here with the twins of its kernels."""

import pytest
import torch

from experiments.kernels.step_bench import WINDOWS, GpuSteps, StepBench, StepJob, StepPlace, compile_one, model_config
from experiments.kernels.step_choices import Choice, trial_of
from experiments.models import find_model
from experiments.tune import OPS
from variants import fused
from variants.kernels.attention_cut import attention_cut
from variants.kernels.tile_table import Trial, on_trial
from variants.kernels.tiles import Tile

PLACE = StepPlace("tiny", batch=2, context=60, layers=2, dtype="float32", device="cpu")
OFF = Choice("down", "linear_add 64x160", False)


@pytest.fixture(scope="module")
def steps() -> GpuSteps:
    return GpuSteps(PLACE, find_model("tiny").sizes, OPS)


def test_a_step_has_a_time_for_each_window(steps: GpuSteps) -> None:
    for _ in range(2):
        times_us = steps.time_us(Trial())
        assert len(times_us) == WINDOWS
        assert min(times_us) > 0
    # 60 tokens and half of the steps fit the shortest table.
    assert steps.max_context == 128


def test_a_step_runs_what_is_on_trial(steps: GpuSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, ...]] = []
    right = fused.linear_add

    def linear_add(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> object:
        ran.append(tuple(weight.shape))
        return right(x, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "linear_add", linear_add)
    steps.time_us(Trial())
    assert set(ran) == {(64, 64), (64, 160)}
    ran.clear()
    steps.time_us(trial_of([OFF]))
    assert set(ran) == {(64, 64)}
    assert on_trial() == Trial()


def test_the_engines_own_choices_are_known(steps: GpuSteps) -> None:
    tiles = {site: choice.tile for site, choice in steps.own.items() if site != "attention"}
    assert tiles == {site: steps.problem(point).heuristic() for site, point in steps.points.items()}
    sizes = find_model("tiny").sizes
    own = attention_cut(2, *(sizes[name] for name in ("num_heads", "num_kv_heads", "head_dim")), 128, 64, steps.sms)
    assert steps.own["attention"].cut == own
    # Around 128 tokens the first steps have a table of 128, the last one of 320: the last count.
    longer = GpuSteps(StepPlace("tiny", 2, 128, 1, "float32", "cpu"), sizes, OPS)
    assert longer.max_context == 320
    many = GpuSteps(StepPlace("tiny", 128, 8, 1, "float32", "cpu"), find_model("tiny").sizes, OPS)
    assert not any(choice.fused for choice in many.own.values())


def test_a_worker_runs_its_choice_once_and_says_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_one(StepJob(PLACE, OFF))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def out_of_resource(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(fused, "linear_add", out_of_resource)
    with pytest.raises(RuntimeError, match="shared memory"):
        compile_one(StepJob(PLACE, Choice("o", "linear_add 64x64", True)))
    monkeypatch.undo()
    compile_one(StepJob(PLACE, OFF))


def test_layers_are_as_many_as_asked_and_all_else_is_the_models() -> None:
    bench = StepBench(StepPlace("tiny", 1, 8, layers=1, dtype="float32", device="cpu"))
    assert bench.model.num_layers == 1
    assert len(bench.engine.runner.caches) == 1
    assert bench.model.hidden_size == model_config("tiny").hidden_size


def test_what_is_wrong_is_said_in_the_form_that_the_engine_runs(
    steps: GpuSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice("down", "linear_add 64x160", True, Tile("skinny", 8, 16, 64, 2, 2))
    assert steps.why_wrong(choice) == ""
    assert steps.why_wrong(OFF) == ""
    kind = steps.points["down"].kind
    right = kind.launch
    monkeypatch.setattr(kind, "launch", lambda *args, **kw: (right(*args, **kw)[0] * 1.1, right(*args, **kw)[1]))
    assert "beyond" in steps.why_wrong(choice)
