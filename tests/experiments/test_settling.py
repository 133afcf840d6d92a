"""A point ends early once its verdicts are clear and precise, not before, and nothing of that looks like a failure."""

import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.compose import compose
from experiments.plan import make_plan
from experiments.records import OUT_OF_TIME, SETTLED, Cell, CellResult, Point, Status
from experiments.reporting.first_screen import first_screen
from experiments.reporting.rows import analyse
from experiments.reporting.run import assemble
from experiments.reporting.tables.evidence import ledger, not_ok
from experiments.settling import Settling
from experiments.stats import Looks, is_settled
from tests.experiments.reporting.synthetic import Synthetic
from tests.experiments.sweeping import Outcome, sweep

PLACE = Point("tiny", "decode", 1, 8)
FAST, SAME = [1.30, 1.31, 1.30, 1.31, 1.305], [1.001, 0.999, 1.0, 1.001, 1.0]
ROUNDS = "protocol.rounds=8"
EARLY = ("protocol.min_rounds=4", "protocol.target_ci=0.005")


def settling(variants: str = "baseline,fused", *overrides: str) -> Settling:
    asked = ["experiment=quick", f"variants=[{variants}]", "workloads=[decode]", ROUNDS, *EARLY, *overrides]
    return Settling(config := compose(asked), make_plan(config, ["tiny"]))


def learn(judge: Settling, variant: str, values_ms: list[float], status: Status = Status.OK) -> None:
    for round_, value in enumerate(values_ms):
        judge.learn(CellResult(Cell(PLACE, variant, round_), status, samples={"step_ms": [value]}))


@pytest.mark.parametrize(
    ("rounds", "min_rounds", "target_ci"), [(10, 4, 0.005), (4, 3, 0.01), (10, 4, None), (2, 4, 0.1)]
)
def test_the_looks_together_spend_the_whole_error_and_no_more(
    rounds: int, min_rounds: int, target_ci: float | None
) -> None:
    looks = Looks.planned(rounds, min_rounds, target_ci)
    spent = [1 / looks.price(n) for n in range(looks.first, looks.last + 1)]
    assert sum(spent) == pytest.approx(1)
    assert len(spent) == (1 if target_ci is None else max(1, rounds - min_rounds + 1))


def test_rounds_that_ended_before_the_first_look_cost_nothing() -> None:
    assert Looks(4, 10).price(3) == 1.0
    assert Looks(4, 10).price(4) == 12.0
    assert Looks(4, 10).price(10) == 2.0


@pytest.mark.parametrize(
    ("ratios", "settled"),
    [
        (SAME, True),
        ([1 / r for r in FAST], True),
        (FAST, True),
        (FAST[:3], False),
        # Clear, but known to +-4 % only.
        ([1.30, 1.36, 1.28, 1.33, 1.35], False),
        # Precise to +-0.3 %, but neither within 1 % of parity nor different at the price of an early look.
        ([1.009, 1.012, 1.007, 1.011, 1.008], False),
        # Precise to +-0.3 %, and within 1 % of parity at 95 %, but not with the confidence of an early look.
        ([1.001, 1.007, 1.004, 1.006, 1.002], False),
    ],
)
def test_precise_and_clear_is_what_settles(ratios: list[float], settled: bool) -> None:
    assert is_settled(ratios, 0.01 if ratios is FAST else 0.005, Looks(4, 10), comparisons=40) is settled


def test_a_point_is_settled_when_all_its_variants_are() -> None:
    judge = settling("baseline,folded,fused")
    learn(judge, "baseline", [1.0] * 5)
    learn(judge, "fused", SAME)
    learn(judge, "folded", [1.0, 1.05, 0.97, 1.02, 0.96])
    assert judge.look() == []
    again = settling("baseline,folded,fused")
    for variant in ("baseline", "folded", "fused"):
        learn(again, variant, SAME)
    assert again.look() == [PLACE]
    assert again.look() == []
    assert again.why_skip(Cell(PLACE, "baseline", 7)) == SETTLED
    assert again.why_skip(Cell(replace(PLACE, batch=2), "baseline", 7)) is None


def test_a_variant_that_failed_keeps_no_point_open_but_the_baseline_does() -> None:
    judge = settling("baseline,folded,fused")
    learn(judge, "baseline", [1.0] * 5)
    learn(judge, "fused", SAME)
    learn(judge, "folded", [1.0], Status.OOM)
    assert judge.look() == [PLACE]
    judge = settling()
    learn(judge, "fused", SAME)
    learn(judge, "baseline", [1.0], Status.ERROR)
    assert judge.look() == []


def test_no_point_is_settled_without_a_target_or_before_min_rounds() -> None:
    for judge, rounds in ((settling("baseline,fused", "protocol.target_ci=null"), 5), (settling(), 3)):
        learn(judge, "baseline", [1.0] * rounds)
        learn(judge, "fused", SAME[:rounds])
        assert judge.look() == []


def test_what_ran_out_of_time_is_no_failure() -> None:
    judge = settling()
    learn(judge, "baseline", [1.0] * 5)
    learn(judge, "fused", SAME)
    judge.learn(CellResult(Cell(PLACE, "fused", 6), Status.SKIPPED, OUT_OF_TIME))
    assert judge.look() == [PLACE]


def by_round(found: Outcome, batch: int) -> list[str]:
    """How the cells of a batch ended, round by round."""
    endings: dict[int, set[str]] = defaultdict(set)
    for result in found.results.values():
        if result.cell.point.batch == batch:
            endings[result.cell.round].add(result.reason or "ok")
    return [" ".join(sorted(endings[round_])) for round_ in sorted(endings)]


def test_a_sweep_gives_its_rounds_to_the_points_that_need_them(tmp_path: Path) -> None:
    # The fake worker's ratios do not scatter at all; at batch 2 one baseline cell fails, so nothing is ever compared.
    rules = [{"do": "error", "on": "measure", "variant": "baseline", "batch": 2, "round": 1}]
    found = sweep(tmp_path, ROUNDS, *EARLY, "lengths=[8]", rules=rules)
    assert found.code == 0
    assert len(found.results) == 8 * 2 * 2
    assert by_round(found, 1) == ["ok"] * 4 + [SETTLED] * 4
    assert by_round(found, 2) == ["ok", "as the rules say: error ok", *["ok"] * 6]
    assert len(found.measured) == 4 * 2 + 8 * 2


def test_resume_neither_measures_nor_loads_for_what_is_settled(tmp_path: Path) -> None:
    asked = (ROUNDS, *EARLY)
    first = sweep(tmp_path, *asked)
    for round_ in (4, 7):
        (first.path / "cells" / f"tiny.decode.b1.l8.fused.r0{round_}.json").unlink()
    found = sweep(tmp_path, *asked, "resume=latest", rules=[{"do": "error", "on": "load"}])
    assert found.statuses() == first.statuses()
    assert found.measured == first.measured


def test_each_model_has_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves by a second whenever it is read: a round of 8 cells takes 17 or so, skipped ones included. The
    # first model has 50 for its four rounds, the second what is left of 100.
    monkeypatch.setattr("experiments.sweep.time", SimpleNamespace(monotonic=itertools.count().__next__))
    found = sweep(tmp_path, "models=[tiny,tiny-llama]", "protocol.rounds=4", "protocol.time_budget_s=100")
    measured = {
        model: {r.cell.round for r in found.results.values() if r.status is Status.OK and r.cell.point.model == model}
        for model in ("tiny", "tiny-llama")
    }
    assert measured == {"tiny": {0, 1, 2}, "tiny-llama": {0, 1}}


def test_reports_count_settled_cells_apart() -> None:
    def settle(result: CellResult) -> CellResult:
        settled = result.cell.round >= 3
        return CellResult(result.cell, Status.SKIPPED, SETTLED) if settled else result

    run = Synthetic(models=("qwen3-0.6b",), workloads=("decode",), batches=(1,), mend=settle).run()
    analysis = analyse(run)
    counts = run.status_counts()
    assert counts["planned"] == counts["ok"] + counts["settled"]
    assert (counts["settled"], counts["skipped"]) == (2 * 2 * 4, 0)
    assert {(row.status, row.n) for row in analysis.primary} == {(Status.OK, 3)}
    missing, endings = not_ok(analysis), ledger(analysis)
    assert missing is not None
    assert missing.rows == []
    assert endings is not None
    assert [row[-1] for row in endings.rows] == [4] * 4
    cells = next(fact for fact in first_screen(analysis).facts if fact.label == "Cells")
    assert cells.text == "40 planned, 24 ok, 16 not needed (settled early)"
    assert cells.tone == ""


def test_an_early_look_is_paid_for_in_the_report() -> None:
    """The same five rounds (t = 4.4, p = 0.011): a claim where five were planned, none where they were the second look
    of seven."""
    slower = (1.03, 1.02, 1.035, 1.005, 1.03)

    def slow_down(result: CellResult) -> CellResult:
        step_ms = slower[result.cell.round] if result.cell.variant == "compiled" else 1.0
        return replace(result, samples={"step_ms": [step_ms]})

    one_point = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1,), "lengths": (128,)}
    synthetic = Synthetic(**one_point, variants=("baseline", "compiled"), mend=slow_down)
    manifest, results, verdicts = synthetic.manifest(), synthetic.results(), []
    for protocol in ({"rounds": 5}, {"rounds": 10, "min_rounds": 4, "target_ci": 0.005}):
        planned = replace(manifest.config, protocol=replace(manifest.config.protocol, **protocol))
        rows = analyse(assemble(replace(manifest, config=planned), results)).primary
        verdicts += [r.verdict for r in rows if r.variant == "compiled"]
    assert verdicts == ["slower", "unresolved"]
