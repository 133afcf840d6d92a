"""Inclusive sums, projections and totals against `nsys stats`, on the same export, to the nanosecond."""

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest

from experiments.errors import UserError
from experiments.trace.nsys import Nsys, find_nsys
from experiments.trace.reader import read_trace
from tests.experiments.trace.stock import inclusive_sums, kernel_sums, projection

Synthetic = Callable[..., Any]


@pytest.fixture(scope="module")
def nsys() -> Nsys:
    try:
        found = find_nsys()
    except UserError as error:
        pytest.skip(f"no nsys to compare with: {error}")
    if "gpukernsum" not in found.run("stats", "--help-reports").stdout:
        pytest.skip(f"nsys {found.version} here has no working stats")
    return found


def stats(nsys: Nsys, path: Path, report: str) -> list[dict[str, str]]:
    """The rows of a stock report. Its CSV follows some lines of chatter."""
    done: subprocess.CompletedProcess[str] = nsys.run("stats", "-q", "-f", "csv", "-r", report, str(path))
    lines = done.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.count(",") > 5), len(lines))
    rows = list(csv.DictReader(lines[start:]))
    assert rows, f"{report} printed no table: {done.stdout}{done.stderr}"
    return rows


def busy_export(synthetic: Synthetic, seed: int) -> Path:
    """Two processes of two threads with nested, repeated, open and crossing ranges, and work of every kind.

    Schema 3.0.0 is that of the nsys whose reports we compare with.
    """
    rng = Random(seed)
    export = synthetic("3.0.0")
    export.domain("library", 2, process=1)
    correlation = 0
    threads = [(process, thread) for process in (1, 2) for thread in (1, 2)]
    for process, thread in threads:
        stack, now = [], rng.randrange(50)
        for _ in range(60):
            now += rng.randrange(1, 9)
            action = rng.random()
            if action < 0.35:
                stack.append((now, f"op/{rng.randrange(4)}"))
            elif action < 0.55 and stack:
                start, name = stack.pop()
                registered, domain = rng.random() < 0.5, 2 * (process == 1 and rng.random() < 0.5)
                export.range(name, start, now, (process, thread), registered, domain)
            else:
                # Equal correlation ids in both processes.
                correlation += 1
                export.call(correlation, now, now + rng.randrange(1, 4), (process, thread))
                at, duration = now + rng.randrange(100), rng.randrange(1, 60)
                where = {"process": process, "streamId": rng.randrange(2)}
                if rng.random() < 0.8:
                    name, grid = f"kernel{rng.randrange(3)}", rng.randrange(1, 3)
                    export.kernel(name, correlation, at, at + duration, gridX=grid, gridY=1, gridZ=1, **where)
                else:
                    table = rng.choice(["CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET"])
                    export.work(table, correlation, at, at + duration, **where)
                now += 4
        for start, name in stack:
            export.range(name, start, None, (process, thread))
        if (process, thread) == (1, 2):
            correlation = 0
    export.range("op/started", 20, 150, style=60)
    export.range("op/crossing", 20, 150, style=60, end_thread=(1, 2))
    return Path(export.close())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_stock_reports(nsys: Nsys, synthetic: Synthetic, seed: int) -> None:
    path = busy_export(synthetic, seed)
    trace = read_trace(path)
    _same_kernel_sums(kernel_sums(trace), stats(nsys, path, "gpukernsum"))
    _same_inclusive_sums(inclusive_sums(trace), stats(nsys, path, "nvtxkernsum"))
    _same_projection(projection(trace), stats(nsys, path, "nvtxgpuproj"))


def _same_kernel_sums(ours: pd.DataFrame, theirs: list[dict[str, str]]) -> None:
    mine = {(r.name, r.grid_x, r.grid_y, r.grid_z): (r.count, r.total_ns) for r in _rows(ours)}
    stock = {
        (row["Name"], *map(int, row["GridXYZ"].split())): (int(row["Instances"]), int(row["Total Time (ns)"]))
        for row in theirs
    }
    assert mine == stock


def _same_inclusive_sums(ours: pd.DataFrame, theirs: list[dict[str, str]]) -> None:
    mine = {(r.range, r.style, r.pid, r.tid, r.kernel): (r.num_ranges, r.count, r.total_ns) for r in _rows(ours)}
    stock = {
        (
            row["NVTX Range"].replace("None", ""),
            row["Style"].replace("None", ""),
            int(row["PID"]),
            int(row["TID"]),
            row["Kernel Name"],
        ): (
            int(row["NVTX Inst"]),
            int(row["Kern Inst"]),
            int(row["Total Time (ns)"]),
        )
        for row in theirs
    }
    assert mine == stock
    assert any(name == "" for name, *_ in mine)
    assert any(name.startswith("library:") for name, *_ in mine)


def _same_projection(ours: pd.DataFrame, theirs: list[dict[str, str]]) -> None:
    mine = [
        (r.name, r.start, r.duration, r.range_start, r.range_duration, r.pid, r.tid, r.num_launches)
        for r in _rows(ours)
    ]
    columns = ("Projected Start (ns)", "Projected Duration (ns)", "Orig Start (ns)", "Orig Duration (ns)", "PID", "TID")
    stock = [(row["Name"], *(int(row[c]) for c in columns), int(row["NumGPUOps"])) for row in theirs]
    assert sorted(mine) == sorted(stock)


def _rows(frame: pd.DataFrame) -> Any:
    return frame.itertuples(index=False)


def test_an_outer_range_includes_what_an_inner_one_has(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("outer", 0, 100)
    export.range("inner", 10, 50)
    export.call(1, 20, 30)
    export.kernel("k", 1, 200, 250)
    export.call(2, 60, 70)
    export.kernel("k", 2, 225, 260)
    export.kernel("k", 3, 300, 310)
    trace = export.read()
    sums = {row.range: (row.count, row.total_ns) for row in _rows(inclusive_sums(trace))}
    assert sums == {"outer": (2, 85), "inner": (1, 50), "": (1, 10)}
    spans = {row.name: (row.start, row.duration, row.num_launches) for row in _rows(projection(trace))}
    assert spans == {"outer": (200, 60, 2), "inner": (200, 50, 1)}
    assert kernel_sums(trace)["total_ns"].sum() == 95
