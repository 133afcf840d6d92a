"""Several runs in one report: never pooled, every row and panel under its run's letter, one scale and one palette."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from experiments.report import main
from experiments.reporting.charts.specs import Bars, Lines
from experiments.reporting.files import build_together
from experiments.reporting.markdown import render_markdown
from experiments.reporting.page import render_page
from experiments.reporting.run import Run, assemble
from experiments.reporting.side_by_side import analyse_together, side_by_side
from experiments.reporting.summary import SCHEMA_FILE
from tests.experiments.comparing.stored import Made
from tests.experiments.reporting.synthetic import Synthetic, ledger
from tests.experiments.reporting.test_files import parse

SMALL = {"models": ("qwen3-0.6b",), "workloads": ("decode",), "batches": (1, 8), "lengths": (128,)}


def _run(gpu: str, commit: str, **changes: Any) -> Run:
    made = Synthetic(**(SMALL | changes))
    dirty = commit == "b" * 40
    manifest = replace(made.manifest(), gpu=gpu, commit=commit, run_id=f"run-{commit}", dirty=dirty)
    return assemble(manifest, made.results(), [], [ledger("fused")])


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    other = {"variants": ("baseline", "folded", "fused"), "batches": (8, 64), "gains": {"fused": 1.4}}
    return [_run("NVIDIA H200", "a" * 40), _run("NVIDIA H100", "b" * 40, **other)]


def test_each_run_keeps_its_own_rows_and_values(runs: list[Run]) -> None:
    together = analyse_together(runs)
    document = side_by_side(together)
    table = document.tables["results"]
    rows = [dict(zip([c.name for c in table.columns], row, strict=True)) for row in table.rows]
    assert table.columns[0].name == "run"
    assert [r["run"] for r in rows] == ["A"] * 8 + ["B"] * 6
    for letter, analysis in together.items():
        expected = {(r.batch, r.variant): r.speedup for r in analysis.primary}
        assert {(r["batch"], r["variant"]): r["speedup"] for r in rows if r["run"] == letter} == expected


def test_columns_of_variants_stand_in_plan_order_and_are_empty_where_a_run_lacks_them(runs: list[Run]) -> None:
    table = side_by_side(analyse_together(runs)).tables["headline"]
    names = [c.name for c in table.columns]
    assert set(names) > {"compiled", "norm_linear", "folded"}
    assert names.index("fused") < names.index("speedup")
    folded = names.index("folded")
    assert [row[folded] is None for row in table.rows] == [True, True, False, False]
    # Intervals stay beside their value, or the tables would show them apart.
    at = names.index("speedup")
    assert names[at : at + 3] == ["speedup", "speedup_ci_low", "speedup_ci_high"]


def test_panels_of_one_place_are_neighbours_on_one_scale_in_one_palette(runs: list[Run]) -> None:
    document = side_by_side(analyse_together(runs))
    _, figure = document.figures["latency_qwen3-0.6b_decode"]
    assert [panel.title for panel in figure.panels] == ["A: length 128", "B: length 128"]
    charts = [panel.chart for panel in figure.panels]
    assert all(isinstance(chart, Lines) for chart in charts)
    levels = [chart.levels for chart in charts if isinstance(chart, Lines)]
    assert min(levels[0]) == min(levels[1])
    assert max(levels[0]) == max(levels[1])
    colours = [{s.name: s.color for s in chart.series} for chart in charts if isinstance(chart, Lines)]
    assert colours[0]["fused"] == colours[1]["fused"]
    variants = {name: slot for name, slot in (colours[0] | colours[1]).items() if name != "floor"}
    assert len(set(variants.values())) == len(variants) == 5
    _, bars = document.figures["memory_qwen3-0.6b"]
    assert len({panel.chart.longest for panel in bars.panels if isinstance(panel.chart, Bars)}) == 1
    assert [record[0] for record in figure.records] == ["A"] * 8 + ["B"] * 6


def test_machine_commit_and_day_stand_beside_each(runs: list[Run]) -> None:
    document = side_by_side(analyse_together(runs))
    who = (
        "A: synthetic/run-" + "a" * 40 + ", NVIDIA H200, bfloat16, commit aaaaaaaaaaaa, 2026-11-23",
        "NVIDIA H100, bfloat16, commit bbbbbbbbbbbb with uncommitted changes, 2026-11-23",
    )
    facts = {fact.label: fact.text for fact in document.screen.facts}
    assert who[0].removeprefix("A: ") == facts["Run A"]
    assert who[1] in facts["Run B"]
    assert {"A: Verdicts", "B: Verdicts", "A: Answers", "B: Answers", "A: Cells", "B: Cells"} <= facts.keys()
    assert document.warnings == (
        f"B: The code had uncommitted changes: commit {'b' * 12} alone does not give these numbers.",
    )
    for _, figure in document.figures.values():
        assert all(words in figure.caption for words in who)
    assert all(card.title.startswith(("A: ", "B: ")) for card in document.screen.cards)
    assert "fusebench report runs=[synthetic/run-" in document.commands[-1]


def test_page_and_markdown_are_whole(runs: list[Run]) -> None:
    document = side_by_side(analyse_together(runs))
    page, text = render_page(document), render_markdown(document)
    parsed = parse({"index.html": page.encode()})
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {t[1:] for t in parsed.targets if t.startswith("#")} <= set(parsed.ids)
    for words in ("2 runs side by side", "NVIDIA H100", "Nothing is paired or pooled across runs"):
        assert words in page
    assert "| A | qwen3-0.6b |" in text
    assert "Protocol, A" not in text


def test_methods_that_differ_are_said_for_each(runs: list[Run]) -> None:
    slow = _run("NVIDIA H100", "c" * 40, rounds=3)
    headings = [heading for heading, _ in side_by_side(analyse_together([runs[0], slow])).methods]
    assert headings[:3] == ["Protocol, A", "Protocol, B", "Statistics"]


def test_files_have_a_summary_of_each_run_and_the_same_bytes_again(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.reporting.charts.paper.render", lambda figure: {})
    files = build_together(runs)
    for letter, gpu in (("A", "NVIDIA H200"), ("B", "NVIDIA H100")):
        summary = json.loads(files[f"summary.{letter}.json"])
        jsonschema.validate(summary, json.loads(SCHEMA_FILE.read_text()))
        assert summary["gpu"] == gpu
    assert "summary.json" not in files
    assert build_together(runs) == files


def test_an_empty_run_beside_a_whole_one_is_honest(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.reporting.charts.paper.render", lambda figure: {})
    empty = Synthetic(models=()).run()
    twin = replace(_run("", "d" * 40, kernels="twin", ceilings=False, rounds=1))
    page = build_together([empty, runs[0], twin])["index.html"].decode()
    assert "C: Twin run" in page
    assert "A: Cells" in page
    assert "0 planned, 0 ok" in page


def _stored(tmp_path: Path) -> list[str]:
    results = tmp_path / "results"
    paths = [Made(seed=seed, commit=commit).store(results) for seed, commit in ((0, "aaaaaaa"), (1, "bbbbbbb"))]
    return [f"quick/{path.name}" for path in paths]


def test_the_command_writes_beside_the_reports_of_single_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _stored(tmp_path)
    paths = [f"results_dir={tmp_path / 'results'}", f"reports_dir={tmp_path / 'reports'}"]
    assert main([f"runs=[{','.join(names)}]", "name=both", *paths]) == 0
    assert names[1] in capsys.readouterr().out
    assert (tmp_path / "reports/both/index.html").is_file()
    assert (tmp_path / "reports/both/summary.B.json").is_file()
    assert not (tmp_path / "reports/quick").exists()
    assert main([f"runs=[{','.join(names)}]", "--terminal", *paths]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}\n" in printed for name in names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs=[a/b]"], "is one run"),
        (["runs=[a,b]", "experiment=quick"], "not both"),
        (["runs=[a,b]", "run=x"], "not both"),
        (["runs=[a,b]", "name=../x"], "name=../x"),
        (["runs=[nope,quick]"], "experiment=nope has no runs"),
        (["runs=[quick,quick]"], "twice"),
    ],
)
def test_bad_runs_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    Made().store(tmp_path / "results")
    assert main([*arguments, f"results_dir={tmp_path / 'results'}"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
