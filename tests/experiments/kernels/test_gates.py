"""The gates pass what is right, and each fails what it is there for."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.argmax import argmax_triton
from experiments import validate
from experiments.kernel_records import GateRow, GateStatus
from experiments.kernels import chains, gates, linear_cases
from experiments.kernels.attention_cases import Attention, QkvPost
from experiments.kernels.case import Case, Deviation
from experiments.kernels.cases import ALL_ROWS, CASES, forms
from experiments.kernels.chained_cases import ChainedNormLinear
from experiments.kernels.chains import chain_of
from experiments.kernels.gates import Reach, accuracy, attempt, batch_invariance, gates_of, pdl, repeats, special_rows
from experiments.kernels.linear_cases import GateUpSilu, LmHead, NormLinear
from variants.kernels.tiles import Tile

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


GATES = [
    "relative error against float64",
    "error over the unfused path's",
    "largest error",
    "written outside of outputs",
    "error beside NaN, infinity, zeros and 1e4",
    "bytes changed over 100 repeats",
    "bytes changed by other rows",
    "bytes changed by PDL over 1000 replays",
]
KINDS = [pytest.param(kind, id=kind.name()) for op in CASES for kind in forms(op).values()]


def reach(kind: Any, how: Any = "twin", dtype: torch.dtype = torch.float32) -> Reach:
    return Reach(kind, how, dtype, CPU)


def status(rows: Any, gate: str) -> GateStatus:
    row: GateRow = next(row for row in rows if gate in row.gate)
    return row.status


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a laptop can afford in a second."""
    monkeypatch.setattr(gates, "MOST_TWIN_ROWS", 7)
    monkeypatch.setattr(NormLinear, "FEW_ROWS", (1, 3, 4))
    monkeypatch.setattr(gates, "SPECIAL_ROWS", (4,))


@pytest.mark.parametrize("kind", KINDS)
def test_every_twin_passes_in_bfloat16(kind: type[Case]) -> None:
    rows = list(gates_of(reach(kind, dtype=torch.bfloat16)))
    assert {row.status for row in rows} == {GateStatus.PASSED, GateStatus.SHOWN, GateStatus.SKIPPED}
    assert [row.gate for row in rows if not row.gate.startswith("error of ")] == GATES
    first = rows[0]
    assert first.gate == "relative error against float64"
    assert first.figure is not None
    assert first.unfused is not None
    assert 0 < first.figure <= 1.05 * first.unfused
    assert first.checked == 4 * len(kind.SHAPES)
    assert [row.gate for row in rows if row.status is GateStatus.SKIPPED][
        -1
    ] == "bytes changed by PDL over 1000 replays"


@pytest.mark.parametrize("kind", [NormLinear, ChainedNormLinear])
def test_an_interpreted_kernel_passes(kind: type[Case]) -> None:
    rows = list(gates_of(reach(kind, "triton", torch.float16)))
    assert {row.subject for row in rows} == {kind.name()}
    assert not [row for row in rows if row.status is GateStatus.FAILED]
    assert status(rows, "written outside") is GateStatus.PASSED
    # Three and four rows share a tile; one row has its own.
    assert next(row for row in rows if "other rows" in row.gate).where == "classes of M: 1, 3-4"


def test_many_rows_on_hopper_are_classes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its launcher cuts them up; with SILU a single tile of rows is shared, and the next are not."""

    def classes(kind: type[NormLinear]) -> list[object]:
        case = kind.blank((64, 128), 2048, torch.float32, torch.device("cpu"))
        return [case.dispatch_class(rows) for rows in (64, 65, 128, 129, 2048)]

    assert all(isinstance(found, Tile) for found in classes(NormLinear))
    monkeypatch.setattr(linear_cases, "hopper_takes_product", lambda s, weight: True)
    assert classes(NormLinear)[1:] == [("sm90", False)] * 4
    assert classes(GateUpSilu)[1:] == [("sm90", True), ("sm90", True), ("sm90", False), ("sm90", False)]
    assert isinstance(classes(NormLinear)[0], Tile)


class OffByAThousandth(NormLinear):
    """A scale that is slightly wrong, as with a wrong eps."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        return y * 1.001, stream


class Leaking(NormLinear):
    """A row's NaN reaches the rows beside it."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        return y + 0 * y.sum(0), stream


class Drifting(NormLinear):
    """Never the same twice."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        return y + 1e-7 * torch.rand(1), stream


class Counting(NormLinear):
    """The number of rows decides how they are computed."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        return y * (1 + 1e-6 * len(y)), stream


class Straying(QkvPost):
    """Writes to a slot that is nobody's."""

    def launch(self, *arguments: Any, **options: Any) -> Tensor:
        q: Tensor = super().launch(*arguments, **options)
        self.k_cache[-1, 0, 0, 0] = 1.0
        return q


class Overrunning(NormLinear):
    """Writes one element past the end of its output."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(1.0)
        return y, stream


class Forgetting(QkvPost):
    """Stores values that are slightly off; the oracle, in float64, does not."""

    def launch(self, *arguments: Any, **options: Any) -> Tensor:
        q: Tensor = super().launch(*arguments, **options)
        if self.dtype != torch.float64:
            self.v_cache.mul_(1.0001)
        return q


class RoundedAway(NormLinear):
    """Half a unit of rounding off."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        y, stream = super().launch(*arguments, **options)
        return y * (1 + 2**-8), stream


class RoundedTwice(LmHead):
    """Logits that lose as much again as the unfused path's."""

    def launch(self, *arguments: Any, **options: Any) -> Any:
        tokens, best = super().launch(*arguments, **options)
        return tokens, best * (1 + 8e-3 * (torch.arange(len(best)) % 2 - 0.5))


def test_what_the_head_replaces_ends_with_the_choice_that_the_engine_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two stages: against the slower torch.argmax the fused head would pay where it does not."""
    case = LmHead.draw((150, 136), 3, torch.float32, CPU)
    expected, _ = case.launch_unfused("twin")
    chosen = []
    monkeypatch.setattr(linear_cases, "argmax_triton", lambda x: chosen.append(argmax_triton(x)) or chosen[-1])
    tokens, _ = case.launch_unfused("triton")
    assert chosen == [tokens]
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_logits_are_compared_over_many(rows: int) -> None:
    """Single launches of the same kernel come out anywhere, by luck; together they are the better ones."""
    right, wrong = reach(LmHead, dtype=torch.bfloat16), reach(RoundedTwice, dtype=torch.bfloat16)
    alone = []
    for seed in range(40):
        case = LmHead.draw((150, 136), rows, torch.bfloat16, CPU, seed=seed)
        oracle, unfused = case.oracle(), case.outputs(case.launch_unfused("twin"))
        alone.append(case.error(case.outputs(case.launch("twin")), oracle) / case.error(unfused, oracle))
    assert max(alone) > 1.05
    assert attempt(right, (150, 136), rows).ratio < 1
    assert attempt(wrong, (150, 136), rows).ratio > 1.05


def test_many_values_are_compared_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one launch; those of few are compared in parts of as many rows, none left out."""
    parts: list[tuple[int, int]] = []
    pool = gates.pooled_errors

    def pooled(case: Any, rows: int, runs: Any) -> list[float]:
        parts.append((case.num_rows, rows))
        return pool(case, rows, runs)

    monkeypatch.setattr(gates, "pooled_errors", pooled)
    half = reach(NormLinear, dtype=torch.bfloat16)
    attempt(half, (75, 136), 4)
    assert not parts
    attempt(half, (75, 136), 3)
    assert parts == [(6, 3)]
    attempt(reach(LmHead), (150, 136), 1)
    assert parts == [(6, 3)], "nothing is held to an fp32 ratio"
    # 1,152 values, but those of one head err together.
    attempt(reach(Attention, dtype=torch.bfloat16), (9, 3, 64), 2)
    assert parts[1:] == [(8, 2)]


def test_each_gate_fails_what_it_is_for() -> None:
    assert status(accuracy(reach(OffByAThousandth)), "relative error") is GateStatus.FAILED
    assert status(accuracy(reach(Straying)), "written outside") is GateStatus.FAILED
    assert special_rows(reach(Leaking)).status is GateStatus.FAILED
    assert repeats(reach(Drifting)).status is GateStatus.FAILED
    assert batch_invariance(reach(Counting, "triton")).status is GateStatus.FAILED


def test_what_is_written_beside_an_output_is_counted() -> None:
    """By the kernel; a twin's outputs are PyTorch's own."""
    assert attempt(reach(Overrunning, "triton"), (8, 16), 2).outside == 1
    assert attempt(reach(NormLinear, "triton"), (8, 16), 2).outside == 0


def test_each_output_is_judged_by_its_own_errors() -> None:
    rows = list(accuracy(reach(Forgetting)))
    assert status(rows, "stored values") is GateStatus.FAILED
    assert status(rows, "stored keys") is GateStatus.PASSED
    assert status(rows, "relative error") is GateStatus.PASSED


def test_a_gate_shows_the_place_that_is_worst_for_its_bound() -> None:
    """Not the largest error; with what the unfused path had at the same place."""
    found = [Deviation("a", 3.0, 10.0), Deviation("b", 0.2, 0.1), Deviation("c", 0.0, 0.0)]
    row = reach(NormLinear).judge("a gate", found, [1.0, 2.0, 3.0])
    assert (row.status, row.where, row.figure, row.bound, row.unfused) == (GateStatus.FAILED, "b", 0.2, 0.1, 2.0)
    assert (row.gate, row.dtype, row.kernels, row.checked) == ("a gate", "float32", "twin", 3)
    assert reach(NormLinear).judge("a gate", [found[0], found[2]]).status is GateStatus.PASSED
    shown = reach(NormLinear).show("a gate", [1.0, 3.0, 2.0], ["a", "b", "c"])
    assert (shown.status, shown.where, shown.figure, shown.checked) == (GateStatus.SHOWN, "b", 3.0, 3)
    for figures in ([float("nan"), 3.0], [3.0, float("nan")]):
        assert math.isnan(reach(NormLinear).show("a gate", figures, ["a", "b"]).figure or 0.0)


def test_a_kernel_within_its_bound_may_still_be_worse_than_what_it_replaces() -> None:
    """That fails it, but not in fp32, whose two sums differ in order."""
    for dtype, expected in ((torch.bfloat16, GateStatus.FAILED), (torch.float32, GateStatus.SHOWN)):
        assert status(accuracy(reach(RoundedTwice, dtype=dtype)), "unfused path's") is expected


def test_what_is_wrong_where_the_unfused_path_is_exact_is_no_better_than_it() -> None:
    """Zero weights: the baseline gives the bias to the bit, and no ratio to that is small."""

    def ratio(kind: type[NormLinear]) -> float:
        case = kind.draw((75, 136), 4, torch.bfloat16, CPU)
        exact = replace(case, weight_NK=torch.zeros_like(case.weight_NK))
        oracle, unfused = exact.oracle(), exact.outputs(exact.launch_unfused("twin"))
        found = exact.outputs(exact.launch("twin")), unfused
        return gates._ratio(reach(kind, dtype=torch.bfloat16), (75, 136), exact, found, oracle)

    assert ratio(NormLinear) == 0
    assert ratio(RoundedAway) == float("inf")


def test_only_compiled_kernels_are_tried_at_the_models_shapes_and_at_all_rows() -> None:
    twin, interpreted = reach(NormLinear), reach(NormLinear, "triton")
    compiled = replace(interpreted, device=torch.device("cuda"))
    assert [r.kernels for r in (twin, replace(twin, device=torch.device("cuda")), interpreted, compiled)] == [
        "twin", "twin", "interpreted", "compiled"
    ]  # fmt: skip
    assert set(NormLinear.REAL_SHAPES) <= set(compiled.shapes)
    assert twin.shapes == interpreted.shapes == NormLinear.SHAPES
    assert (twin.rows, interpreted.rows, compiled.rows) == ((1, 2, 3, 7), (1, 3, 4), ALL_ROWS)


def test_dependent_launches_are_tried_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every number of rows, and the one that changed most is shown."""
    compiled = Reach(NormLinear, "triton", torch.bfloat16, torch.device("cuda"))
    changed = dict.fromkeys(gates.PDL_ROWS, 0) | {4: 2, 64: 3}
    monkeypatch.setattr(gates, "chain_of", lambda kind, rows, *_: (rows, torch.zeros(1)))
    monkeypatch.setattr(gates, "changed_by_pdl", lambda rows, refresh: changed[rows])
    for capability, expected in (((8, 9), GateStatus.SKIPPED), ((9, 0), GateStatus.FAILED)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert pdl(compiled).status is expected
    assert (pdl(compiled).figure, pdl(compiled).checked) == (2, len(changed))
    changed[4] = changed[64] = 0
    assert pdl(compiled).status is GateStatus.PASSED
    assert pdl(reach(NormLinear, "triton")).status is GateStatus.SKIPPED


def test_the_same_gates_pass_what_they_are_not_for() -> None:
    assert special_rows(reach(NormLinear)).status is GateStatus.PASSED
    assert repeats(reach(NormLinear)).status is GateStatus.PASSED
    assert status(accuracy(reach(Drifting)), "relative error") is GateStatus.PASSED


@pytest.mark.parametrize("kind", KINDS)
def test_chains_run_and_depend_on_their_inputs(kind: type[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PDL, in the interpreter."""
    monkeypatch.setattr(chains, "LINKS", 2)
    launch, inputs = chain_of(kind, 3, 128, torch.float32, CPU)
    before = launch(False).clone()
    assert before.isfinite().all()
    inputs.copy_(inputs.flip(0))
    assert not torch.equal(launch(False), before)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_compiled_kernel_passes_in_bfloat16(kind: type[Case]) -> None:
    rows = list(gates_of(Reach(kind, "triton", torch.bfloat16, torch.device("cuda"))))
    assert {row.status for row in rows} <= {GateStatus.PASSED, GateStatus.SHOWN}, rows


def test_a_kernel_that_raises_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object, **__: object) -> None:
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(NormLinear, "launch", launch)
    rows = list(validate.kernel_rows(validate.Options(ops=("norm_linear", "qkv_post"), dtypes=("float32",)), "cpu"))
    broken = [row for row in rows if row.subject.startswith("norm_linear")]
    assert {row.subject for row in broken} == {"norm_linear", "norm_linear chained"}
    assert {(row.status, row.where) for row in broken} == {
        (GateStatus.FAILED, "RuntimeError: out of resource: shared memory")
    }
    assert all(row.status is not GateStatus.FAILED for row in rows if row.subject == "qkv_post")
    assert len(rows) > len(broken)


def test_the_command_knows_every_kernel() -> None:
    assert tuple(CASES) == validate.OPS


def test_what_was_not_measured_is_no_number() -> None:
    """A NaN error is a failure and stays one in the file."""
    broken = replace(NormLinear.draw((8, 16), 2, torch.float32, CPU), weight_NK=torch.full((8, 16), float("nan")))
    outputs = broken.outputs(broken.launch("twin"))
    assert not broken.error(outputs, outputs) <= broken.bound()
