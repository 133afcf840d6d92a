"""Numbers and tables as people and machines read them."""

# ruff: noqa: RUF001 (multiplication signs and en dashes are how these numbers are printed)

import csv
import io

import pytest

from experiments.records import Point
from experiments.reporting.formats import (
    Column,
    Kind,
    Table,
    display,
    interval,
    number,
    percent,
    provenance,
    ratio,
    revision,
    rounded,
    shown,
    size,
    to_csv,
    to_latex,
    to_markdown,
    where,
)

TABLE = Table(
    "t",
    "A & B",
    "caption",
    (
        Column("name", "Name"),
        Column("speedup", "Speed-up", Kind.RATIO),
        Column("speedup_ci_low", "CI low", Kind.RATIO),
        Column("speedup_ci_high", "CI high", Kind.RATIO),
        Column("bytes", "Bytes", Kind.BYTES),
    ),
    (("a|b_c", 1.5, 1.25, 1.75, 2_500_000_000), ("50 %", 1.0, None, None, None), ("x", None, None, None, 12)),
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.36041, "0.3604"),
        (23_800.4, "23,800"),
        (7.0, "7.000"),
        (1.23456e-7, "1.235e-07"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_have_four_digits(value: float | None, words: str) -> None:
    assert number(value) == words


def test_ratios_have_three_decimals_near_parity() -> None:
    assert ratio(1.004) == "1.004×"
    assert ratio(1.846) == "1.85×"
    assert interval(1.21, 1.43) == "1.21–1.43"
    assert interval(0.9991, 1.0012) == "0.999–1.001"
    assert interval(None, 1.0) == "no interval"


def test_shares_and_sizes() -> None:
    assert percent(0.523) == "52.3 %"
    assert size(143_771_000_000) == "143.77 GB"
    assert size(12) == "12 B"
    assert shown(Kind.TINY, 0.0) == "0"
    assert shown(Kind.COUNT, 12_345) == "12,345"


def test_a_point_of_mixed_lengths_has_no_length() -> None:
    assert where(Point("m", "decode", 8, 1024)) == "batch 8, length 1024"
    assert where(Point("m", "offline", 256, 0)) == "batch 256"


def test_a_commit_is_as_long_as_it_takes_and_uncommitted_changes_are_told() -> None:
    commits = ("0a1b2c3d4e5f60718293", "ffeeddccbbaa99887766")
    assert provenance(commits[0], "2026-11-23T10:15:00Z", dirty=True) == (
        "commit 0a1b2c3d4e5f with uncommitted changes, 2026-11-23"
    )
    assert revision(" and ".join(commits)) == "commit 0a1b2c3d4e5f and ffeeddccbbaa"
    assert revision("") == "commit unknown"


def test_rounding_hides_the_last_bits_and_refuses_what_json_cannot_say() -> None:
    assert rounded(0.1 + 0.2) == 0.3
    assert rounded(float("inf")) is None
    assert rounded(float("nan")) is None


def test_intervals_join_the_value_before_them() -> None:
    view = display(TABLE)
    assert view.titles == ("Name", "Speed-up", "Bytes")
    assert view.rows[0][1] == ("1.50×", "1.25–1.75")
    assert view.rows[1][1] == ("1.000×", "no interval")
    assert view.rows[2][1] == ("–", "")


def test_csv_holds_plain_values_under_named_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([c.name for c in TABLE.columns], TABLE.rows))))
    assert rows[0] == {
        "name": "a|b_c",
        "speedup": "1.5",
        "speedup_ci_low": "1.25",
        "speedup_ci_high": "1.75",
        "bytes": "2500000000",
    }
    assert rows[1]["speedup_ci_low"] == ""


def test_markdown_escapes_pipes_and_aligns_numbers() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[1] == "|---|--:|--:|"
    assert lines[2] == "| a\\|b_c | 1.50× [1.25–1.75] | 2.50 GB |"


def test_latex_escapes_what_latex_minds() -> None:
    text = to_latex(TABLE)
    assert r"a|b\_c & 1.50$\times$ [1.25--1.75] & 2.50 GB \\" in text
    assert r"50 \%" in text
    assert text.count(r"\\") == 1 + len(TABLE.rows)
    assert r"\begin{tabular}{lrr}" in text
