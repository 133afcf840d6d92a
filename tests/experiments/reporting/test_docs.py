"""Blocks of the documentation that are made from committed results."""

import json
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.report import main
from experiments.reporting.docs import refresh, stale_blocks
from experiments.reporting.rows import analyse
from experiments.reporting.summary import summary_of
from tests.experiments.reporting.synthetic import Synthetic

EMPTY = "# Title\n\n<!-- generated:headline -->\n<!-- /generated:headline -->\n\nafter\n"


def _commit_report(root: Path) -> None:
    folder = root / "reports/headline"
    folder.mkdir(parents=True)
    run = Synthetic(models=("qwen3-0.6b",), workloads=("decode", "prefill", "offline"), batches=(1,)).run()
    (folder / "summary.json").write_text(json.dumps(summary_of(analyse(run))))


def test_blocks_of_this_repository_are_fresh() -> None:
    assert stale_blocks() == []


def test_without_a_committed_run_the_block_says_so(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(EMPTY)
    assert stale_blocks(tmp_path) == ["README.md"]
    assert refresh(tmp_path) == ["README.md"]
    assert "No H200 run is committed yet" in (tmp_path / "README.md").read_text()
    assert stale_blocks(tmp_path) == refresh(tmp_path) == []


def test_the_headline_block_is_a_table_of_the_committed_run(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/10_benchmarks.md").write_text(EMPTY)
    (tmp_path / "README.md").write_text("nothing generated here\n")
    assert refresh(tmp_path) == ["docs/10_benchmarks.md"]
    text = (tmp_path / "docs/10_benchmarks.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:headline -->\n| Cell | baseline |")
    assert text.endswith("<!-- /generated:headline -->\n\nafter\n")
    row = next(line for line in text.splitlines() if "qwen3-0.6b decode b=1 ctx 128" in line)
    assert "| faster |" in row
    assert row.count("|") == 1 + 1 + 4 + 3
    assert "NVIDIA H200, bfloat16, commit 0a1b2c3d4e5f, 2026-11-23" in text
    assert "qwen3-0.6b offline 256" in text


def test_a_hand_edited_block_is_stale(tmp_path: Path) -> None:
    _commit_report(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY)
    refresh(tmp_path)
    readme.write_text(readme.read_text().replace("faster", "much faster", 1))
    assert stale_blocks(tmp_path) == ["README.md"]


def test_an_unknown_block_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(EMPTY.replace("headline", "heading"))
    with pytest.raises(UserError, match=r"generated:heading; there are: .*headline"):
        refresh(tmp_path)


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "reports/headline").mkdir(parents=True)
    (tmp_path / "reports/headline/summary.json").write_text('{"rows": [{}]}')
    (tmp_path / "README.md").write_text(EMPTY)
    with pytest.raises(UserError, match=r"summary\.json cannot be used"):
        refresh(tmp_path)


def test_the_command_refreshes_and_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("experiments.reporting.docs.refresh", lambda: ["README.md"])
    assert main(["--docs"]) == 0
    assert capsys.readouterr().out == "refreshed README.md\n"
