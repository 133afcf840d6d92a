"""The command on stored runs: verdicts, exit codes, refusals, and nothing dropped."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.cli import main as fusebench
from experiments.compare import main, parse
from experiments.environment import ROOT
from experiments.errors import UserError
from experiments.records import CellResult, Status
from tests.experiments.comparing.stored import H200, MACHINE, Made

SLOWER = {"baseline": 1.0, "fused": 0.52}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def _compare(results: Path, *arguments: str | Path) -> int:
    return main([*map(str, arguments), f"results_dir={results}"])


def _two(results: Path, old: Made, new: Made, *arguments: str) -> int:
    """Exit code of the comparison of two runs that are made up."""
    return _compare(results, old.store(results), replace(new, seed=new.seed + 1).store(results), *arguments)


def _oom(r: CellResult) -> CellResult:
    gone = (r.cell.variant, r.cell.point.batch) == ("fused", 8)
    return replace(r, status=Status.OOM, reason="not enough", samples={}) if gone else r


def test_a_regression_is_exit_code_1_and_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(), Made(times=SLOWER, commit="bbbbbbb")) == 1
    out = capsys.readouterr().out
    assert "2 regressions beyond 1.0 %: 0 faster, 2 same, 2 slower, 0 unresolved" in out
    assert "tiny decode b=8 ctx 128" in out
    assert "commit aaaaaaa" in out
    assert "changed between them: the code that is timed differs" in out
    assert re.search(r"the baseline itself: (0\.99\d|1\.00\d). B over A, geometric mean of 2 cells", out)


def test_a_gain_and_equal_runs_are_exit_code_0(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(times=SLOWER), Made()) == 0
    assert "no regression found: 2 faster, 2 same, 0 slower" in capsys.readouterr().out
    assert _two(results, Made(), Made()) == 0
    assert "no regression found: 0 faster, 4 same, 0 slower" in capsys.readouterr().out


@pytest.mark.parametrize(("margin", "code"), [("margin=3%", 1), ("margin=6%", 0), ("margin=0.06", 0)])
def test_a_loss_within_the_margin_is_slower_and_no_regression(
    results: Path, capsys: pytest.CaptureFixture[str], margin: str, code: int
) -> None:
    assert _two(results, Made(), Made(times=SLOWER), margin) == code
    assert "2 slower" in capsys.readouterr().out


def test_a_margin_under_one_per_cent_is_not_hidden_by_same(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = Made(noise=2e-4), Made(times={"baseline": 1.0, "fused": 0.5035}, noise=2e-4)
    assert _two(results, old, new, "margin=0.5%") == 1
    assert "2 slower" in capsys.readouterr().out
    assert _two(results, old, new, "margin=1%") == 0
    assert "4 same" in capsys.readouterr().out


def test_noise_is_unresolved_not_slower(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(noise=0.2), Made(noise=0.2)) == 0
    assert "4 unresolved" in capsys.readouterr().out


def test_a_cell_that_fails_now_is_a_regression_and_listed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(), Made(mend=_oom)) == 1
    out = capsys.readouterr().out
    assert "regression: oom in B: not enough" in " ".join(out.split())
    assert "1 not compared" in out


def test_a_cell_that_failed_before_is_listed_and_no_regression(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _two(results, Made(mend=_oom), Made()) == 0
    assert "oom in A: not enough" in capsys.readouterr().out


def test_cells_of_one_run_only_are_listed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"baseline": 1.0, "fused": 0.5, "folded": 0.9}
    assert _two(results, Made(), Made(times=wide, overrides=("batches=[8,64]",))) == 0
    out = capsys.readouterr().out
    assert out.count("only A has it") == 2  # batch 1: baseline and fused
    assert out.count("only B has it") == 4  # batch 64: all three; batch 8: folded


def test_a_cell_that_never_ran_is_listed_and_no_regression(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(r: CellResult) -> CellResult | None:
        return None if r.cell.point.batch == 8 else r

    assert _two(results, Made(), Made(mend=stopped)) == 0
    assert capsys.readouterr().out.count("skipped in B: never ran") == 2


def test_nothing_in_common_is_exit_code_2(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(), Made(overrides=("batches=[64]",))) == 2
    said = capsys.readouterr()
    assert "only B has it" in said.out
    assert "nothing could be compared" in said.err


def test_unlike_runs_are_refused_in_one_line_with_the_reason(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h100 = replace(MACHINE, gpu=replace(H200, name="NVIDIA H100"))
    assert _two(results, Made(), Made(machine=h100, weights_hash="w2", kernels="twin")) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    for words in (
        "gpu was NVIDIA H200 and is NVIDIA H100",
        "weights.tiny was w1",
        "kernels were compiled and are twin",
    ):
        assert words in said.err
    assert not said.out


def test_force_compares_unlike_runs_and_marks_every_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Made(times=SLOWER, kernels="twin", mend=_oom)
    assert _two(results, Made(), other, "--force", "--markdown") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert len(lines) == 5  # the slower cell stands open and in the fold, the lost one apart
    assert all("UNLIKE: " in line for line in lines)


def test_variants_of_one_run_are_paired_within_rounds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drift that would drown an unpaired comparison cancels."""

    def drift(r: CellResult) -> CellResult:
        return replace(r, samples={"step_ms": [s * (1 + 0.3 * r.cell.round) for s in r.samples["step_ms"]]})

    path = Made(mend=drift).store(results)
    assert _compare(results, "quick", "variant=baseline,fused") == 0
    assert "2 faster, 0 same" in capsys.readouterr().out
    assert _compare(results, "quick", "variant=fused,baseline") == 1
    assert "baseline" in capsys.readouterr().out
    other = Made(mend=drift, seed=1).store(results)
    assert _compare(results, path, other, "variant=fused") == 0
    assert "2 unresolved" in capsys.readouterr().out


def test_a_variant_of_one_run_against_another_of_another(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(), Made(), "variant=baseline,fused") == 0
    out = capsys.readouterr().out
    assert "A: baseline of quick/" in out
    assert "baseline -> fused" in out
    assert "2 faster" in out
    assert "the baseline itself" not in out


def test_runs_are_named_by_experiment_id_or_folder(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Made().store(results)
    second = Made(seed=1, commit="bbbbbbb0000").store(results)
    assert second.name != first.name
    code = fusebench(["compare", f"quick/{first.name}", str(second), f"results_dir={results}"])
    assert code == 0
    assert f"B: quick/{second.name}" in capsys.readouterr().out


def test_a_run_against_itself_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Made().store(results)
    assert _compare(results, "quick", path) == 2
    assert "both runs are quick/" in capsys.readouterr().err


def test_damaged_cells_are_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = Made().store(results), Made(seed=1).store(results)
    cell = sorted((new / "cells").glob("*.json"))[0]
    cell.write_bytes(cell.read_bytes()[:40])
    assert _compare(results, old, new) == 0
    assert f"problem in reading B: {cell.name}" in capsys.readouterr().out


def test_markdown_shows_what_moved_and_folds_the_rest(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _two(results, Made(), Made(times=SLOWER), "--markdown") == 1
    opened, _, folded = capsys.readouterr().out.partition("<details>")
    assert opened.startswith("**2 regressions beyond 1.0 %")
    assert opened.count("| tiny") == 2
    assert "slower, beyond 1.0 %" in opened
    assert folded.count("| tiny") == 4
    widths = {line.count("|") for line in folded.splitlines() if line.startswith("|")}
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RUN_A RUN_B"),
        (["a", "b", "c"], "RUN_A RUN_B"),
        (["quick"], "compare quick with what?"),
        (["quick", "variant=fused"], "with what?"),
        (["quick", "variant=fused,fused"], "with what?"),
        (["a", "b", "variant=x,y,z"], "RUN_A RUN_B"),
        (["a", "b", "margin=1"], "margin=1 must lie between"),
        (["a", "b", "margin=lots"], "margin=lots"),
        (["a", "b", "--fast"], "--fast"),
        (["a", "b", "colour=red"], "unknown key 'colour'"),
        (["nope", "quick"], "experiment=nope has no runs"),
        (["/nope", "quick"], "/nope holds no manifest.json: give EXPERIMENT/RUN_ID"),
        (["./nope/", "quick"], "./nope/ holds no manifest.json"),
        (["results/quick/nope", "quick"], "results/quick/nope holds no manifest.json"),
        (["quick/never", "quick"], "run=never is no run of quick"),
        (["quick", "variant=fused,fusde"], "variant=fusde is not in run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    Made().store(results)
    assert _compare(results, *arguments) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_margin_is_a_share_or_a_percentage() -> None:
    for given in (["margin=1%"], ["margin=0.01"], []):
        assert parse(["a", "b", *given]).margin == pytest.approx(0.01)
    with pytest.raises(UserError, match="must lie between"):
        parse(["a", "b", "margin=nan"])


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "margin=1%" in capsys.readouterr().out


def test_it_loads_no_torch(results: Path) -> None:
    old, new = Made().store(results), Made(seed=1).store(results)
    code = (
        "import sys\nfrom experiments.compare import main\n"
        f"assert main([{str(old)!r}, {str(new)!r}]) == 0\n"
        "heavy = {'torch', 'triton', 'engine', 'variants', 'matplotlib'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
