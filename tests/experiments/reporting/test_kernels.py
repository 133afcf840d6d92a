"""The report of single kernels: paired speed-ups with verdicts, heat maps of kernels, and no claim from twins."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.durable import read_json, write_json
from experiments.environment import Code, Environment, Gpu
from experiments.errors import UserError
from experiments.kernel_records import (
    COMPILED,
    FUSED,
    KERNELS,
    SCHEMA,
    UNFUSED,
    KernelRow,
    KernelRun,
    Stamp,
    read_run,
    write_run,
)
from experiments.records import Status
from experiments.report import main as report
from experiments.reporting.kernels import build_kernels, compare, kernel_table, show_kernels

GPU = Environment("3.11.0", "Linux x86_64", "CPU", 2, Gpu("NVIDIA H200", "570", 1, 1), {"torch": "2.11.0"})
STAMP = Stamp("run-1", "2026-01-01T00:00:00+00:00", "fusebench kernels", "cuda", Code("abcdef0", False, ""), GPU)
ROW = KernelRow("qwen3-0.6b", "norm_linear", "qkv", (4096, 1024), 1, "bfloat16", "cold", FUSED, "compiled", Status.OK)


def row(contender: str, us: float, **changes: object) -> KernelRow:
    """Ten samples around a time, with a drift that all contenders share."""
    samples = tuple(us * (1 + 0.001 * repeat) for repeat in range(10))
    filled = {"error": 1e-3, "bound": 2.5e-3, "samples_us": samples, "floor_us": 2.0, **changes}
    return replace(ROW, contender=contender, **filled)  # type: ignore[arg-type]


def place(unfused_us: float, fused_us: float, **changes: object) -> list[KernelRow]:
    return [row(UNFUSED, unfused_us, **changes), row(FUSED, fused_us, **changes)]


RUN = KernelRun(
    SCHEMA,
    STAMP,
    pdl=False,
    ceilings={"read_bytes_per_s": 4.6e12, "bf16_flop_per_s": 7e14},
    rows=(
        *place(6.0, 4.0),
        row(COMPILED, 5.0),
        *place(6.0, 6.0, cache="hot", floor_us=None),
        *place(40.0, 50.0, rows=2048),
        row(UNFUSED, 9.0, rows=8),
        row(FUSED, 9.0, rows=8, status=Status.INVALID, reason="error 0.1 is beyond 0.0025", samples_us=()),
    ),
)


def test_places_are_compared_by_repeat() -> None:
    faster, same, slower, invalid = compare(RUN)
    assert faster.speedup is not None
    assert (faster.speedup.value, faster.verdict) == (pytest.approx(1.5), "faster")
    assert [same.verdict, slower.verdict, invalid.verdict] == ["same", "slower", "invalid"]
    assert invalid.speedup is None
    line = dict(zip([c.name for c in kernel_table([faster]).columns], kernel_table([faster]).rows[0], strict=True))
    assert line["shape"] == "4096x1024"
    assert line["compiled_us"] == pytest.approx(5.0 * 1.0045)
    assert line["share_of_floor"] == pytest.approx(2.0 / (4.0 * 1.0045))


def test_a_report_is_a_table_and_a_heat_map_and_says_what_failed() -> None:
    files = build_kernels(RUN)
    assert set(files) == {
        "report.md", "tables/kernels.csv", "tables/kernels.tex", "figures/kernels_qwen3-0.6b.csv",
        "figures/kernels_qwen3-0.6b.svg", "figures/kernels_qwen3-0.6b.png",
    }  # fmt: skip
    page = files["report.md"].decode()
    for words in ("NVIDIA H200", "norm_linear", "figures/kernels_qwen3-0.6b.svg", "error 0.1 is beyond", "2 M N K"):
        assert words in page
    assert files == build_kernels(RUN)


def test_forms_are_places_of_their_own() -> None:
    both = replace(RUN, rows=(*place(6.0, 8.0), *place(6.0, 3.0, form="chained")))
    alone, chained = compare(both)
    assert [alone.verdict, chained.verdict] == ["slower", "faster"]
    drawn = build_kernels(both)["figures/kernels_qwen3-0.6b.svg"].decode()
    assert "norm_linear chained qkv" in drawn
    shown = io.StringIO()
    show_kernels(both, Console(file=shown, width=250))
    assert "qwen3-0.6b norm_linear chained qkv 4096x1024" in shown.getvalue()


def test_runs_from_before_there_were_forms_are_read(tmp_path: Path) -> None:
    file = write_run(tmp_path, KERNELS, RUN)
    content = read_json(file)
    for kept in content["rows"]:
        del kept["form"]
    write_json(file, content)
    assert read_run(KernelRun, file) == RUN
    assert {row.form for row in RUN.rows} == {"alone"}


def test_twins_get_no_speed_up_and_no_heat_map() -> None:
    twins = replace(RUN, rows=tuple(replace(r, kernels="twin") for r in RUN.rows))
    assert [at.verdict for at in compare(twins)] == ["twin", "twin", "twin", "invalid"]
    assert all(at.speedup is None for at in compare(twins))
    assert not [name for name in build_kernels(twins) if name.startswith("figures")]
    shown = io.StringIO()
    show_kernels(twins, Console(file=shown, width=150))
    assert "say nothing about speed" in shown.getvalue()


def test_the_report_command_finds_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results" / KERNELS / "run-1"
    folder.mkdir(parents=True)
    file = write_run(folder, KERNELS, RUN)
    assert read_run(KernelRun, file) == RUN
    where = [f"results_dir={tmp_path / 'results'}", f"reports_dir={tmp_path / 'reports'}"]
    assert report(["experiment=kernels", *where]) == 0
    assert (tmp_path / "reports" / KERNELS / "report.md").read_bytes() == build_kernels(RUN)["report.md"]
    assert report(["experiment=kernels", "run=nope", *where]) == 2
    assert "there are run-1" in capsys.readouterr().err


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    file = write_run(tmp_path, KERNELS, RUN)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"kernels\.json cannot be used: truncated"):
        read_run(KernelRun, file)
    write_run(tmp_path, KERNELS, replace(RUN, schema=2))
    with pytest.raises(UserError, match="schema 2"):
        read_run(KernelRun, file)
