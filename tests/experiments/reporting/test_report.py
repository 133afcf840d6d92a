"""The command on stored runs: what it writes, and one clear line for what it cannot do."""

import json
from pathlib import Path

import pytest

from experiments import plain
from experiments.cli import main as fusebench
from experiments.durable import write_json
from experiments.report import main
from tests.experiments.reporting.synthetic import ledger
from tests.experiments.sweeping import Outcome, sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A real store, filled by a fake worker."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(folder)


def _run(folder: Path, *arguments: str) -> int:
    return main([*arguments, f"results_dir={folder / 'results'}", f"reports_dir={folder / 'reports'}"])


def test_a_stored_run_becomes_a_report(swept: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    folder, outcome = swept
    assert _run(folder, "experiment=quick") == 0
    assert "16 of 16 cells ok" in capsys.readouterr().out
    made = {p.relative_to(folder / "reports/quick").as_posix() for p in (folder / "reports").rglob("*") if p.is_file()}
    assert {"index.html", "report.md", "summary.json", "tables/results.csv", "tables/results.tex"} <= made
    summary = json.loads((folder / "reports/quick/summary.json").read_text())
    assert summary["run_id"] == outcome.path.name
    assert summary["question"] == outcome.manifest.question
    assert summary["ledger"]["ok"] == 16


def test_the_run_can_be_named_and_the_command_is_fusebench_report(swept: tuple[Path, Outcome]) -> None:
    folder, outcome = swept
    paths = [f"results_dir={folder / 'results'}", f"reports_dir={folder / 'named'}"]
    assert fusebench(["report", "experiment=quick", f"run={outcome.path.name}", *paths]) == 0
    assert (folder / "named/quick/index.html").is_file()
    assert fusebench(["report", "experiment=quick", "name=aside", *paths]) == 0
    assert (folder / "named/aside/index.html").is_file()


def test_damaged_cells_and_ledgers_are_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    outcome = sweep(tmp_path)
    cell = sorted((outcome.path / "cells").glob("*.json"))[0]
    cell.write_bytes(cell.read_bytes()[:40])
    traces = outcome.path / "traces"
    traces.mkdir()
    for variant in ("baseline", "fused"):
        write_json(traces / f"{variant}.json", plain.encode(ledger(variant)))
    (traces / "bad.json").write_text('{"cell": ')
    assert _run(tmp_path, "experiment=quick") == 0
    text = (tmp_path / "reports/quick/report.md").read_text()
    assert "16 planned, 15 ok, 1 skipped; 2 problems in reading them" in text
    assert cell.name in text
    assert "traces/bad.json" in text
    assert "Where a step goes, qwen3-0.6b decode" in text
    traced = (tmp_path / "reports/quick/tables/traces.csv").read_text().splitlines()
    assert len(traced) == 3


def test_an_unknown_experiment_names_those_that_are_there(
    swept: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(swept[0], "experiment=nope") == 2
    assert "there are: quick" in capsys.readouterr().err


def test_an_unknown_run_names_those_that_are_there(
    swept: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outcome = swept
    assert _run(folder, "experiment=quick", "run=yesterday") == 2
    assert outcome.path.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "experiment=NAME"),
        (["experiment=quick", "colour=red"], "unknown key 'colour'"),
        (["experiment="], "experiment="),
        (["experiment=quick", "results_dir=/nowhere"], "none yet"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_run_folder_without_a_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results/x/20260101").mkdir(parents=True)
    assert _run(tmp_path, "experiment=x") == 2
    assert "manifest.json" in capsys.readouterr().err


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "run=RUN_ID" in capsys.readouterr().out


def test_the_terminal_shows_verdicts_table_and_heat_map(
    swept: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(swept[0], "experiment=quick", "--terminal") == 0
    out = capsys.readouterr().out
    for words in ("Answers", "tiny decode b=2 ctx 16", "fused vs baseline, tiny decode: batch down", "16 planned"):
        assert words in out
