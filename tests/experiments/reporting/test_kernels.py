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
    merged,
    read_run,
    write_run,
)
from experiments.records import Status
from experiments.report import main as report
from experiments.reporting.charts.specs import Heatmap
from experiments.reporting.kernels import build_kernels, compare, kernel_figures, kernel_table, show_kernels

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


@pytest.mark.parametrize(
    ("others", "said"),
    [(None, "not known"), (0, "none"), (3, "3 at once: these times may be of a GPU that was shared")],
)
def test_who_else_was_on_the_gpu_is_said(others: int | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes that an earlier command had left behind once doubled the times of a whole run."""
    run = replace(RUN, other_processes=others)
    assert f"- **Other processes on the GPU:** {said}\n" in build_kernels(run)["report.md"].decode()
    on_cpu = replace(run, stamp=replace(run.stamp, device="cpu"))
    assert "Other processes on the GPU" not in build_kernels(on_cpu)["report.md"].decode()
    show_kernels(run)
    assert ("a GPU that was shared" in " ".join(capsys.readouterr().out.split())) == bool(others)


def test_of_merged_runs_the_most_others_count() -> None:
    def others(*counts: int | None) -> int | None:
        return merged([replace(RUN, other_processes=count) for count in counts]).other_processes

    assert (others(0, 0), others(0, 2), others(3, 2), others(None, 2), others(0, None)) == (0, 2, 3, None, None)


def test_a_report_is_a_table_and_a_heat_map_and_says_what_failed() -> None:
    files = build_kernels(RUN)
    assert set(files) == {
        "report.md", "kernels.json", "tables/kernels.csv", "tables/kernels.tex", "figures/kernels_qwen3-0.6b.csv",
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


def test_torch_compile_has_panels_of_its_own_and_no_verdict() -> None:
    [figure] = kernel_figures(compare(RUN))
    assert [panel.title for panel in figure.panels] == ["cold", "hot", "cold, over torch.compile"]
    chart = figure.panels[2].chart
    assert isinstance(chart, Heatmap)
    [cell] = chart.cells.values()
    assert (cell.value, cell.state) == (pytest.approx(1.25), "")


def test_runs_of_one_code_are_merged_and_the_later_wins() -> None:
    later = replace(
        RUN, stamp=replace(STAMP, run_id="run-2", command="again"), rows=(*place(9.0, 3.0), *place(5.0, 4.0, model="m"))
    )
    both = merged([RUN, later])
    assert both.stamp.run_id == "run-1 and run-2"
    assert both.stamp.command == "fusebench kernels; again"
    assert len(both.rows) == len(RUN.rows) + 2
    found = {(at.fused.model, at.fused.rows, at.fused.cache): at.speedup for at in compare(both)}
    gain = found["qwen3-0.6b", 1, "cold"]
    assert gain is not None
    assert gain.value == pytest.approx(3.0)
    assert {at.fused.model for at in compare(both)} == {"qwen3-0.6b", "m"}
    for other in (replace(later, pdl=True), replace(later, stamp=replace(STAMP, code=Code("ffffff", False, "")))):
        with pytest.raises(UserError, match="they are not merged"):
            merged([RUN, other])


def test_the_report_command_merges_runs(tmp_path: Path) -> None:
    for name, made in (("run-1", RUN), ("run-2", replace(RUN, rows=tuple(place(5.0, 4.0, model="m"))))):
        folder = tmp_path / "results" / KERNELS / name
        folder.mkdir(parents=True)
        write_run(folder, KERNELS, replace(made, stamp=replace(STAMP, run_id=name)))
    where = [f"results_dir={tmp_path}/results", f"reports_dir={tmp_path}/reports"]
    assert report(["runs=[kernels/run-1,kernels/run-2]", "name=kernels", *where]) == 0
    kept = read_run(KernelRun, tmp_path / "reports/kernels/kernels.json")
    assert {row.model for row in kept.rows} == {"qwen3-0.6b", "m"}
    assert (tmp_path / "reports/kernels/figures/kernels_m.svg").is_file()
    folder = tmp_path / "results" / KERNELS
    assert report([f"runs=[{folder}/run-1,kernels/run-2]", "name=again", *where]) == 0
    again, merged_by_id = (tmp_path / f"reports/{name}/kernels.json" for name in ("again", "kernels"))
    assert again.read_bytes() == merged_by_id.read_bytes()
    for twice in ("kernels/run-1", f"{folder}/run-1"):
        assert report([f"runs=[kernels/run-1,{twice}]", "name=kernels", *where]) == 2


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
