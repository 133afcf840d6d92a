"""Measuring one place: errors decide what is timed, and every contender becomes a row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.errors import REASON_WIDTH
from experiments.floors import Ceilings
from experiments.kernel_floors import OPS, kernel_work
from experiments.kernel_records import COMPILED, FUSED, UNFUSED
from experiments.kernels import linear_cases
from experiments.kernels.cases import CASES, forms, sites
from experiments.kernels.linear_cases import LmHead, NormLinear
from experiments.kernels.measure import COLD, HOT, Bench, Place, measure
from experiments.models import find_model
from experiments.records import Status

CPU = torch.device("cpu")
PLACE = Place("tiny", "norm_linear", "qkv", (128, 64), 3)


class FakeTimer:
    """Runs each launch once and claims what it is told."""

    def __init__(self) -> None:
        self.timed: list[tuple[str, int]] = []

    def __call__(self, contenders: Mapping[str, Sequence[Any]], repeats: int) -> dict[str, list[float]]:
        for name, launches in contenders.items():
            self.timed.append((name, len(launches)))
            for launch in launches:
                launch()
        return {name: [10.0] * repeats for name in contenders}


def bench(timer: FakeTimer, **changes: Any) -> Bench:
    return replace(Bench(CPU, "float32", timer, repeats=2), **changes)


def test_cold_and_hot_are_timed_apart_and_only_cold_has_a_floor() -> None:
    timer = FakeTimer()
    weight_bytes = 4 * 128 * 64
    rows = list(measure(bench(timer, l2=weight_bytes, ceilings=Ceilings(1e9, 1e12)), PLACE))
    assert [(row.cache, row.contender, row.copies) for row in rows] == [
        (COLD, UNFUSED, 3),
        (COLD, FUSED, 3),
        (HOT, UNFUSED, 1),
        (HOT, FUSED, 1),
    ]
    assert timer.timed == [(UNFUSED, 3), (FUSED, 3), (UNFUSED, 1), (FUSED, 1)]
    moved = 4 * (128 * 64 + 3 * 3 * 64 + 3 * 128)
    assert [row.floor_us for row in rows] == [pytest.approx(moved / 1e3)] * 2 + [None] * 2
    assert all(row.samples_us == (10.0, 10.0) and row.error and row.bound for row in rows)
    assert rows[1].bytes == moved
    assert rows[1].flop == 2 * 3 * 128 * 64


def test_chained_the_stream_comes_with_its_squares_and_takes_fewer_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    right = linear_cases.norm_linear_reference

    def launch(x: torch.Tensor, residual: Any, weight: torch.Tensor, bias: Any, eps: float, *rest: Any) -> Any:
        if rest:
            given.append((x, residual, rest[0]))
        return right(x, residual, weight, bias, eps, *rest)

    monkeypatch.setattr(linear_cases, "norm_linear_reference", launch)
    rows = list(measure(bench(FakeTimer(), l2=1), replace(PLACE, form="chained")))
    assert all(row.form == "chained" and row.samples_us for row in rows)
    assert rows[0].bytes == 4 * (128 * 64 + 3 * 64 + 3 * 128) + 4 * 32 * 3
    case = CASES["norm_linear"].draw(PLACE.shape, 3, torch.float32, CPU, plain=True)
    stream = case.x_TK + case.residual  # type: ignore[attr-defined]
    for x, residual, partials in given:
        assert torch.equal(x, stream)
        assert residual is None
        assert (partials.shape, partials.dtype) == ((3, 32), torch.float32)
        torch.testing.assert_close(partials.sum(1), stream.square().sum(1))


@pytest.mark.parametrize("op", ["norm_linear", "gate_up_silu", "lm_head"])
def test_the_last_form_of_a_kernel_that_norms_is_the_chained_one(op: str) -> None:
    """Drawn from the same numbers as alone, with the same oracle and the same kernels to replace."""
    alone, chained = (kind.draw((32, 99), 5, torch.float32, CPU) for kind in forms(op).values())
    assert [kind.name() for kind in forms(op).values()] == [op, f"{op} chained"]
    for one, other in zip(alone.outputs(alone.launch("twin")), chained.outputs(chained.launch("twin")), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(alone.oracle(), chained.oracle(), strict=True):
        assert torch.equal(one, other)
    assert list(forms("linear_add")) == ["alone"]


def test_a_wrong_kernel_is_not_timed_and_what_it_replaces_is(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormLinear.launch
    monkeypatch.setattr(NormLinear, "launch", lambda *a, **k: tuple(x * 1.01 for x in right(*a, **k)))
    timer = FakeTimer()
    unfused, fused = measure(bench(timer), PLACE)
    assert fused.status is Status.INVALID
    assert fused.error == pytest.approx(0.01, rel=1e-3)
    assert "is beyond" in fused.reason
    assert not fused.samples_us
    assert unfused.status is Status.OK
    assert timer.timed == [(UNFUSED, 1)]


def test_a_yardstick_that_is_beyond_all_rounding_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormLinear.launch_unfused
    monkeypatch.setattr(
        NormLinear, "launch_unfused", lambda *a, **k: tuple(x if x is None else x * 1.01 for x in right(*a, **k))
    )
    timer = FakeTimer()
    unfused, fused = measure(bench(timer), PLACE)
    assert (unfused.status, unfused.samples_us) == (Status.INVALID, ())
    assert fused.status is Status.OK
    assert timer.timed == [(FUSED, 1)]


def test_a_wrong_side_output_is_as_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormLinear.launch

    def launch(*arguments: Any, **options: Any) -> Any:
        y, stream = right(*arguments, **options)
        return y, stream + 1e-6

    monkeypatch.setattr(NormLinear, "launch", launch)
    _, fused = measure(bench(FakeTimer()), PLACE)
    assert fused.status is Status.INVALID
    assert fused.reason.startswith("residual stream: error")


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("no such tile"), Status.ERROR), (torch.cuda.OutOfMemoryError("full"), Status.OOM)],
)
def test_what_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, error: Exception, status: Status) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(NormLinear, "launch", fail)
    rows = {row.contender: row for row in measure(bench(FakeTimer()), PLACE)}
    assert rows[FUSED].status is status
    assert str(error) in rows[FUSED].reason
    assert rows[FUSED].error is None
    assert bool(rows[UNFUSED].samples_us) == (status is Status.ERROR)


def test_the_formula_compiles_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Dynamo alone: no graph break in any op's formula, and one compilation for every copy of the weights."""
    compiled: list[str] = []

    def compile_(function: Any, **options: Any) -> Any:
        assert options.pop("mode") == "max-autotune-no-cudagraphs"

        def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
            compiled.append("")
            return graph.forward

        return real(function, backend=backend, **options)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_)
    for op in ("linear_add", "gate_up_silu"):
        compiled.clear()
        site, shape = next(iter(sites(op, find_model("tiny").sizes).items()))
        place = Place("tiny", op, site, shape, 3)
        rows = list(measure(bench(FakeTimer(), compiled=True, l2=4 * shape[0] * shape[1]), place))
        assert [row.contender for row in rows[:3]] == [UNFUSED, FUSED, COMPILED]
        assert all(row.status is Status.OK for row in rows), [row.reason for row in rows]
        assert len(compiled) == 1


def test_every_op_has_places_and_work() -> None:
    """Twice the rows never take less than the weights' bytes and twice the FLOP."""
    sizes = find_model("qwen3-0.6b").sizes
    assert sites("norm_linear", sizes) == {"qkv": (4096, 1024), "gate_up": (6144, 1024)}
    assert sites("linear_add", sizes) == {"o": (1024, 2048), "down": (1024, 3072)}
    assert sites("lm_head", sizes) == {"lm_head": (151936, 1024)}
    assert set(OPS) <= set(CASES)
    for op in OPS:
        for shape in sites(op, sizes).values():
            one, two = kernel_work(op, shape, 1, 2), kernel_work(op, shape, 2, 2)
            assert two.flop == 2 * one.flop
            assert one.bytes < two.bytes < 2 * one.bytes + 1


def test_the_reasons_fit_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("x" * 5000)

    monkeypatch.setattr(NormLinear, "launch", fail)
    assert all(len(row.reason) <= REASON_WIDTH for row in measure(bench(FakeTimer()), PLACE))


def test_a_single_logit_is_not_what_a_kernel_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that happened to come out further off than the unfused path's; enough of them tell."""
    place = Place("tiny", "lm_head", "lm_head", (256, 64), 1)
    error = LmHead.error
    monkeypatch.setattr(LmHead, "error", lambda case, found, oracle: 1e-3 if found[0].dtype == torch.float32 else 1e-6)
    unfused, fused = measure(bench(FakeTimer(), dtype="bfloat16"), place)
    assert fused.status is unfused.status is Status.OK
    assert fused.error == 1e-3

    monkeypatch.setattr(LmHead, "error", error)
    right = LmHead.launch
    monkeypatch.setattr(LmHead, "launch", lambda *a, **k: (right(*a, **k)[0], right(*a, **k)[1] * (1 + 4e-3)))
    unfused, fused = measure(bench(FakeTimer(), dtype="bfloat16"), place)
    assert fused.status is Status.INVALID
    assert fused.reason.startswith("more than the unfused path's own: error")
