"""ncu's raw page read into counters. The page has the shape that ncu 2023 to 2026 print; its numbers are invented."""

from pathlib import Path

import pytest

from experiments import plain
from experiments.durable import write_json
from experiments.errors import UserError
from experiments.records import Cell, Point
from experiments.reporting.rows import analyse
from experiments.reporting.run import load_run
from experiments.reporting.tables import build_tables
from experiments.trace.counters import METRICS, Counters, read_raw_page
from experiments.trace.tables import COUNTER_COLUMNS, counter_table
from tests.experiments.sweeping import sweep

CELL = Cell(Point("tiny", "decode", 1, 16), "fused", 0)
PAGE = (Path(__file__).parent / "data" / "ncu_raw_page.csv").read_text()


def read(page: str = PAGE, steps: int = 1) -> Counters:
    return read_raw_page(page, CELL, "2025.3.1", steps)


def test_launches_of_one_kernel_and_shape_are_one_row_most_time_first() -> None:
    rows = read().rows
    assert [(row.name, row.grid, row.launches_per_step) for row in rows] == [
        ("_norm_linear_kernel", "(512, 1, 1)", 2.0),
        ("reduce", "(1, 1, 1)", 1.0),
        ("_norm_linear_kernel", "(768, 1, 1)", 1.0),
    ]
    assert [row.us_per_step for row in rows] == pytest.approx([6.2, 4.5, 4.0])
    assert [row.launches_per_step for row in read(steps=2).rows] == [1.0, 0.5, 0.5]


def test_a_step_that_was_cut_off_is_not_taken_for_a_whole_one() -> None:
    """Launches are counted as they are, whatever part of however many steps they were; the table says what they are."""
    cut = read_raw_page(PAGE, CELL, "2025.3.1", 2, most=4)
    assert (cut.first, cut.steps) == (4, 1)
    assert [row.launches_per_step for row in cut.rows] == [2.0, 1.0, 1.0]
    assert counter_table(cut).title.endswith("ncu 2025.3.1, the first 4 kernels only")
    whole = read_raw_page(PAGE, CELL, "2025.3.1", 2, most=5)
    assert (whole.first, whole.steps) == (0, 2)
    assert counter_table(whole).title.endswith("ncu 2025.3.1, 2 steps")


def test_values_are_means_in_the_units_of_their_names() -> None:
    row = read().rows[0]
    assert row.values["time_us"] == pytest.approx(3.1)
    assert row.values["dram_read_bytes"] == (8_392_704 + 8_388_608) / 2
    assert row.values["dram_share"] == pytest.approx(0.61)
    assert row.values["occupancy_share"] == pytest.approx(0.29)
    assert row.values["registers"] == 96
    assert row.dram_bytes_per_s == pytest.approx((8_390_656 + 4096) / 3.1e-6)
    assert row.stalls() == [("long_scoreboard", pytest.approx(20.5)), ("wait", pytest.approx(2.5))]


def test_what_the_gpu_does_not_count_is_absent_not_zero() -> None:
    values = read().rows[1].values
    assert "tensor_share" not in values
    assert "stall_membar" not in values
    assert values["waves"] == 0


@pytest.mark.parametrize(
    ("ns", "time", "factor"),
    [("nsecond", "3,000", 1.0), ("usecond", "3.0", 1.0), ("s", "3e-06", 1.0), ("ms", "3", 1000.0)],
)
def test_units_are_those_of_the_table(ns: str, time: str, factor: float) -> None:
    page = PAGE.replace('"ns"', f'"{ns}"').replace('"3,000"', f'"{time}"').replace('"3,200"', f'"{time}"')
    row = next(row for row in read(page).rows if row.grid == "(512, 1, 1)")
    assert row.values["time_us"] == pytest.approx(3.0 * factor)


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("", "ncu printed no table"),
        ("==WARNING== No kernels were profiled.\n", "ncu printed no table"),
        ("\n".join(PAGE.splitlines()[:4]), "holds no kernel"),
        ("\n".join(PAGE.splitlines()[:3]), "has no column Kernel Name"),
        (PAGE.replace('"gpu__time_duration.sum"', '"gpu__time"'), "has no column gpu__time_duration.sum"),
        (PAGE.replace('"byte"', '"furlong"'), "gives dram__bytes_read.sum in furlong"),
    ],
)
def test_a_page_that_is_none_is_one_clear_line(page: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read(page)


def test_no_metric_is_asked_for_twice() -> None:
    assert len(set(METRICS.values())) == len(METRICS)
    assert all(" " not in metric for metric in METRICS.values())


def test_the_table_says_bandwidth_and_what_warps_wait_for() -> None:
    table = counter_table(read(), most=2)
    assert len(table.rows) == 2
    row = dict(zip([column.name for column in COUNTER_COLUMNS], table.rows[0], strict=True))
    assert row["dram_gb_per_s"] == pytest.approx(2708, rel=1e-3)
    assert (row["waves"], row["stalls"]) == (pytest.approx(1.94), "long scoreboard 20.5, wait 2.5")
    assert table.title == "tiny decode batch 1, length 16, fused: ncu 2025.3.1, 1 step"


def test_the_report_shows_them_and_names_a_damaged_file(tmp_path: Path) -> None:
    path = sweep(tmp_path, "models=[tiny]", "device=cpu").path
    (path / "counters").mkdir()
    write_json(path / "counters" / f"{CELL.id}.json", plain.encode(read()))
    (path / "counters" / "broken.json").write_text("{")
    run = load_run(path.parents[1], path.parent.name, path.name)
    assert run.counters == (read(),)
    assert any("counters/broken.json: truncated" in problem for problem in run.problems)
    rows = build_tables(analyse(run))["counters"].rows
    assert rows[0][:6] == ("tiny", "decode", 1, 16, "fused", "_norm_linear_kernel")
    assert len(rows) == 3
    assert {row[-1] for row in rows} == {"1 step"}
