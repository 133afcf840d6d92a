"""Cells to rows: statuses, pairing, verdicts, floors."""

import dataclasses
import math
from collections.abc import Callable

import pytest

from experiments.records import CellResult, Row, Status, Verdict
from experiments.reporting.first_screen import first_screen
from experiments.reporting.headline import aggregates, claim_counts, correctness, lead_of
from experiments.reporting.rows import analyse
from tests.experiments.reporting.synthetic import Synthetic

SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1, 64), "lengths": (128,)}
Mend = Callable[[CellResult], CellResult | None]


def _rows(mend: Mend = lambda r: r, **changes: object) -> list[Row]:
    return list(analyse(Synthetic(**(SMALL | changes), mend=mend).run()).primary)  # type: ignore[arg-type]


def _only(rows: list[Row], variant: str, batch: int = 1) -> Row:
    return next(r for r in rows if (r.variant, r.batch) == (variant, batch))


def _fused(change: Mend) -> Mend:
    return lambda r: change(r) if (r.cell.variant, r.cell.point.batch) == ("fused", 1) else r


def test_a_known_speedup_is_recovered_although_the_machine_drifts() -> None:
    row = _only(_rows(), "fused")
    true = 1 + 0.85 / (1 + 1 / 64)
    assert row.speedup_ci_low is not None
    assert row.speedup_ci_high is not None
    assert row.speedup_ci_low < true < row.speedup_ci_high
    assert row.speedup_ci_high - row.speedup_ci_low < 0.02
    assert row.verdict == "faster"
    # The level itself drifts by 5 % between rounds, and its interval says so.
    assert row.ci_high is not None
    assert row.ci_low is not None
    assert row.ci_high / row.ci_low > 1.05


def test_the_baseline_has_a_level_and_no_comparison() -> None:
    row = _only(_rows(), "baseline")
    assert row.median is not None
    assert (row.speedup, row.verdict) == (None, "")


def test_every_planned_pair_has_one_primary_row() -> None:
    assert len(_rows()) == 4 * 2


@pytest.mark.parametrize("status", [Status.OOM, Status.ERROR, Status.TIMEOUT, Status.INVALID])
def test_one_failed_round_takes_the_value_away(status: Status) -> None:
    def fail(r: CellResult) -> CellResult:
        return dataclasses.replace(r, status=status, reason="why", samples={}) if r.cell.round == 3 else r

    row = _only(_rows(_fused(fail)), "fused")
    assert (row.status, row.reason, row.n) == (status, "why (in 1 of 5 rounds)", 4)
    assert (row.median, row.speedup, row.verdict) == (None, None, "")


def test_a_wrong_answer_outweighs_other_failures() -> None:
    by_round = {0: Status.OOM, 1: Status.INVALID, 2: Status.TIMEOUT}

    def fail(r: CellResult) -> CellResult:
        status = by_round.get(r.cell.round)
        return dataclasses.replace(r, status=status, reason=status.value) if status else r

    assert _only(_rows(_fused(fail)), "fused").status is Status.INVALID


def test_rounds_that_never_ran_are_only_fewer_rounds() -> None:
    rows = _rows(lambda r: None if r.cell.round > 2 else r)
    assert {(r.status, r.n) for r in rows} == {(Status.OK, 3)}
    assert _only(rows, "fused").verdict == "faster"


def test_a_cell_that_never_ran_at_all_is_skipped_not_absent() -> None:
    row = _only(_rows(_fused(lambda r: None)), "fused")
    assert row.status is Status.SKIPPED
    assert "resume" in row.reason


@pytest.mark.parametrize("samples", [{}, {"step_ms": []}, {"step_ms": [1.0, math.nan]}, {"step_ms": [math.inf]}])
def test_samples_that_are_no_measurement_make_an_error_row(samples: dict[str, list[float]]) -> None:
    row = _only(_rows(_fused(lambda r: dataclasses.replace(r, samples=samples))), "fused")
    assert row.status is Status.ERROR
    assert row.reason
    assert row.median is None


@pytest.mark.parametrize(
    "verdict", [None, Verdict(False, "wrong", 8, 0.5, 1.0, 2.0, 3), Verdict(True, "", 8, 1.0, math.nan, math.nan, 0)]
)
def test_there_is_no_speed_without_a_verdict_that_holds(verdict: Verdict | None) -> None:
    row = _only(_rows(_fused(lambda r: dataclasses.replace(r, verdict=verdict))), "fused")
    assert row.status is Status.INVALID
    assert row.speedup is None


def test_a_failed_baseline_leaves_the_variant_its_level_and_no_verdict_but_unresolved() -> None:
    def fail(r: CellResult) -> CellResult:
        gone = r.cell.variant == "baseline" and r.cell.point.batch == 1
        return dataclasses.replace(r, status=Status.OOM, reason="x", samples={}) if gone else r

    row = _only(_rows(fail), "fused")
    assert row.median is not None
    assert (row.speedup, row.verdict) == (None, "unresolved")
    assert "baseline" in row.reason


def test_twins_are_never_compared_with_compiled_kernels() -> None:
    row = _only(_rows(_fused(lambda r: dataclasses.replace(r, kernels="twin"))), "fused")
    assert (row.kernels, row.speedup) == ("twin", None)


@pytest.mark.parametrize(("kernels", "compared"), [("peer", True), ("peer beside twins", False)])
def test_another_engine_is_compared_with_compiled_kernels_only(kernels: str, compared: bool) -> None:
    """It has none of ours; beside twins nothing is claimed."""
    row = _only(_rows(_fused(lambda r: dataclasses.replace(r, kernels=kernels))), "fused")
    assert row.median is not None
    assert (row.speedup is not None) == compared
    assert (row.verdict == "faster") == compared


def test_an_engine_without_logits_is_right_by_its_tokens() -> None:
    """What it cannot give is no fault, and the screen speaks of those that can."""
    tokens = Verdict(True, "", 24, 0.97, None, None, None)

    def opaque(r: CellResult) -> CellResult:
        return dataclasses.replace(r, verdict=tokens) if r.cell.variant == "fused" else r

    analysis = analyse(Synthetic(**SMALL, mend=opaque).run())
    assert {r.status for r in analysis.primary} == {Status.OK}
    answers = next(fact for fact in first_screen(analysis).facts if fact.label == "Answers")
    assert "top-1 agreement with the fp32 reference at least 97" in answers.text
    assert "worst KL" in answers.text
    assert "fused" not in answers.text


def test_two_rounds_are_unresolved_and_say_why() -> None:
    row = _only(_rows(rounds=2), "fused")
    assert row.speedup is not None
    assert (row.speedup_ci_low, row.verdict) == (None, "unresolved")
    assert row.reason == "2 paired rounds: an interval takes 3"


def test_a_control_is_never_called_different() -> None:
    rows = _rows(variants=("baseline", "control", "fused"), noise=0.01)
    assert {r.verdict for r in rows if r.variant == "control"} <= {"same", "unresolved"}


def test_a_marginal_gain_is_lost_in_a_large_family() -> None:
    """The same cells alone are significant, among many comparisons they are not."""

    def slower_noise(r: CellResult) -> CellResult:
        wobble = 1 + 0.012 * (r.cell.round - 2) / (1 if r.cell.variant == "compiled" else 1e9)
        return dataclasses.replace(r, samples={"step_ms": [s * wobble for s in r.samples["step_ms"]]})

    few = _only(_rows(slower_noise, variants=("baseline", "compiled"), batches=(1,), rounds=4), "compiled")
    many = _only(_rows(slower_noise, variants=("baseline", "compiled"), batches=range(1, 200), rounds=4), "compiled")
    assert few.verdict == "faster"
    assert many.verdict == "unresolved"


def test_the_floor_stands_beside_every_time_where_ceilings_were_measured() -> None:
    assert _only(_rows(), "fused").floor == pytest.approx(0.26017, rel=1e-4)
    assert all(r.share_of_floor is not None and r.share_of_floor < 1 for r in _rows())
    assert all(r.floor is None for r in _rows(ceilings=False))
    assert all(r.floor is None for r in _rows(models=("of unknown sizes",)))


def test_sizes_that_lack_one_are_damaged_not_unknown() -> None:
    run = Synthetic(**SMALL).run()
    sizes = {name: value for name, value in run.info.models["qwen3-0.6b"].items() if name != "num_layers"}
    with pytest.raises(KeyError, match="num_layers"):
        analyse(dataclasses.replace(run, info=dataclasses.replace(run.info, models={"qwen3-0.6b": sizes})))


def test_an_offline_rate_is_compared_the_other_way_round() -> None:
    rows = _rows(workloads=("offline",))
    row = _only(rows, "fused", 256)
    assert row.metric == "output_tokens_per_s"
    assert row.speedup is not None
    assert row.speedup > 1
    assert row.share_of_floor is not None
    assert row.share_of_floor < 1


def test_the_geometric_mean_is_taken_within_rounds() -> None:
    analysis = analyse(Synthetic(**SMALL).run())
    a = next(a for a in aggregates(analysis) if a.variant == "fused")
    gains = [r.speedup for r in analysis.primary if r.variant == "fused" and r.speedup]
    assert a.speedup is not None
    assert a.speedup.value == pytest.approx(math.sqrt(gains[0] * gains[1]), rel=2e-3)
    assert (a.num_ok, a.num_points, a.claims["faster"]) == (2, 2, 2)
    assert a.slowest is not None
    assert a.fastest is not None
    assert (a.slowest.batch, a.fastest.batch) == (64, 1)


def test_the_lead_is_fused_or_the_last_planned_never_the_fastest() -> None:
    assert lead_of(("baseline", "fused", "compiled")) == "fused"
    assert lead_of(("baseline", "norm_linear", "compiled")) == "compiled"
    assert lead_of(("baseline",)) is None


def test_claim_counts_leave_out_what_was_not_compared() -> None:
    rows = _rows(_fused(lambda r: dataclasses.replace(r, status=Status.OOM, reason="x", samples={})))
    counts = claim_counts([r for r in rows if r.variant == "fused"])
    assert counts == {"faster": 1, "same": 0, "slower": 0, "unresolved": 0}


def test_the_worst_verdict_of_a_variant_is_reported() -> None:
    def worsen(r: CellResult) -> CellResult:
        assert r.verdict is not None
        return dataclasses.replace(r, verdict=dataclasses.replace(r.verdict, kl_max=0.25, kl_max_position=7))

    checked = correctness(analyse(Synthetic(**SMALL, mend=_fused(worsen)).run()))
    worst = next(c for c in checked if c.variant == "fused")
    assert worst.ok
    assert worst.verdict is not None
    assert (worst.verdict.kl_max, worst.verdict.kl_max_position) == (0.25, 7)
