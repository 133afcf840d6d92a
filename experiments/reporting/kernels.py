"""The report of a `fusebench kernels` run: one table, and a heat map of the speed-up for each model.

The run itself is in it, for the documents: several that were merged have no other file.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from experiments import plain
from experiments.durable import json_bytes
from experiments.environment import by_time
from experiments.errors import UserError
from experiments.kernel_floors import __doc__ as FLOORS
from experiments.kernel_records import COMPILED, FUSED, KERNELS, UNFUSED, KernelRow, KernelRun, name_of, read_run
from experiments.reporting.charts import paper
from experiments.reporting.charts.specs import Figure, HeatCell, Heatmap, Panel
from experiments.reporting.formats import (
    Column,
    Kind,
    Table,
    Value,
    interval,
    ratio,
    revision,
    to_csv,
    to_latex,
    to_markdown,
)
from experiments.reporting.terminal import make_console, rich_table
from experiments.stats import Claim, Estimate, claims, estimate, paired_ratios

Key = tuple[str, str, str, str, int, str]

CAPTION = (
    "Microseconds of one launch, medians with their 95 % intervals; the speed-up is fused against the baseline's "
    "kernels, paired by repeat. Errors are relative to float64. Cold: weights from memory. Hot: one copy of the "
    "weights, in L2 where it fits. Chained: behind `linear_add`, which has added the residual and summed the squares; "
    "alone: with both inside. The floor is the roofline of the kernel's formula at this GPU's measured rates."
)
COLUMNS = (
    Column("model", "Model"),
    Column("op", "Kernel"),
    Column("form", "Form"),
    Column("site", "Place"),
    Column("shape", "Shape"),
    Column("rows", "Rows", Kind.COUNT),
    Column("cache", "L2"),
    Column("kernels", "Kernels"),
    Column("error", "Error", Kind.TINY),
    Column("unfused_error", "Unfused error", Kind.TINY),
    Column("unfused_us", "Unfused, µs", Kind.NUMBER),
    Column("compiled_us", "Compiled, µs", Kind.NUMBER),
    Column("fused_us", "Fused, µs", Kind.NUMBER),
    Column("fused_us_ci_low", "low", Kind.NUMBER),
    Column("fused_us_ci_high", "high", Kind.NUMBER),
    Column("speedup", "Speed-up", Kind.RATIO),
    Column("speedup_ci_low", "low", Kind.RATIO),
    Column("speedup_ci_high", "high", Kind.RATIO),
    Column("verdict", "Verdict", Kind.CLAIM),
    Column("share_of_floor", "Share of floor", Kind.PERCENT),
)


@dataclass(frozen=True)
class Compared:
    """The contenders at one place; the speed-up and its verdict only where kernels were timed, not twins."""

    rows: dict[str, KernelRow]
    speedup: Estimate | None = None
    verdict: str = ""

    @property
    def fused(self) -> KernelRow:
        """The kernel in question."""
        return self.rows[FUSED]

    def time(self, contender: str) -> Estimate | None:
        """Microseconds of one launch, where it was timed."""
        row = self.rows.get(contender)
        return estimate(row.samples_us) if row and row.samples_us else None

    def against_compiled(self) -> "Compared":
        """The same beside torch.compile; what fused has over it is told, not judged."""
        return replace(self, speedup=_speedup(self.rows, COMPILED), verdict="")


def compare(run: KernelRun) -> list[Compared]:
    """Every place with its verdict, corrected over all comparisons of the run."""
    groups: dict[Key, dict[str, KernelRow]] = defaultdict(dict)
    for row in run.rows:
        groups[row.model, row.op, row.form, row.site, row.rows, row.cache][row.contender] = row
    speedups = [_speedup(rows) for rows in groups.values()]
    compared = []
    for rows, speedup, verdict in zip(groups.values(), speedups, claims(speedups), strict=True):
        fused = rows[FUSED]
        said = verdict.value if verdict else fused.kernels
        compared.append(Compared(rows, speedup, fused.status.value if fused.reason else said))
    return compared


def _speedup(rows: dict[str, KernelRow], over: str = UNFUSED) -> Estimate | None:
    fused, unfused = rows[FUSED], rows.get(over)
    if fused.kernels == "twin" or unfused is None or not (fused.samples_us and unfused.samples_us):
        return None
    before, after = (dict(enumerate(row.samples_us)) for row in (unfused, fused))
    return estimate(list(paired_ratios(before, after, lower_is_better=True).values()))


def kernel_table(compared: Sequence[Compared]) -> Table:
    """One line a place and state of L2."""
    return Table("kernels", "One kernel at a time", CAPTION, COLUMNS, tuple(map(_line, compared)))


def _line(at: Compared) -> tuple[Value, ...]:
    row, unfused = at.fused, at.rows.get(UNFUSED)
    fused_us, *others = (at.time(name) for name in (FUSED, UNFUSED, COMPILED))
    medians = [time.value if time else None for time in others]
    share = row.floor_us / fused_us.value if row.floor_us and fused_us else None
    shape = "x".join(map(str, row.shape))
    place = (row.model, row.op, row.form, row.site, shape, row.rows, row.cache, row.kernels)
    errors = (row.error, unfused.error if unfused else None)
    return (*place, *errors, *medians, *_bounds(fused_us), *_bounds(at.speedup), at.verdict, share)


def _bounds(found: Estimate | None) -> tuple[Value, Value, Value]:
    return (found.value, found.low, found.high) if found else (None, None, None)


def kernel_figures(compared: Sequence[Compared]) -> Iterator[Figure]:
    """A heat map for each model, cold beside hot; none of twins."""
    timed = [at for at in compared if at.fused.kernels != "twin"]
    for model in dict.fromkeys(at.fused.model for at in timed):
        mine = [at for at in timed if at.fused.model == model]
        caches = dict.fromkeys(at.fused.cache for at in mine)
        panels = [Panel(cache, _heatmap([at for at in mine if at.fused.cache == cache])) for cache in caches]
        for cache in caches:
            against = [at.against_compiled() for at in mine if at.fused.cache == cache and at.time(COMPILED)]
            panels += [Panel(f"{cache}, over torch.compile", _heatmap(against))] if against else []
        caption = (
            f"Speed-up of each fused kernel over what it replaces (cuBLAS and the baseline's kernels), {model}, and "
            "over torch.compile's max-autotune where that was timed: rows of the input across. Blue is faster, orange "
            "slower, grey within 1 % of parity; the mark is the verdict, which is of what it replaces alone."
        )
        columns = tuple(column.name for column in COLUMNS)
        title = f"Speed-up of single kernels, {model}"
        yield Figure(f"kernels_{model}", title, caption, caption, tuple(panels), (), columns, tuple(map(_line, mine)))


def _heatmap(compared: Sequence[Compared]) -> Heatmap:
    names = list(dict.fromkeys(_name(at) for at in compared))
    counts = sorted({at.fused.rows for at in compared})
    cells = {}
    for at in compared:
        gain = at.speedup
        bounds = f" ({interval(gain.low, gain.high)})" if gain else ""
        text = ratio(gain.value) if gain else ""
        tip = f"{_name(at)}, M={at.fused.rows}: {text}{bounds} {at.verdict} {at.fused.reason}".strip()
        value = gain.value if gain else None
        cells[names.index(_name(at)), counts.index(at.fused.rows)] = HeatCell(value, text, at.verdict, tip)
    return Heatmap("kernel", "rows", tuple(names), tuple(f"{count:,}" for count in counts), cells)


def _name(at: Compared) -> str:
    name = name_of(at.fused.op, at.fused.form)
    return name if at.fused.site == at.fused.op else f"{name} {at.fused.site}"


def build_kernels(run: KernelRun) -> dict[str, bytes]:
    """Every file of the report by its path; the same run gives the same bytes."""
    compared = compare(run)
    table, figures = kernel_table(compared), list(kernel_figures(compared))
    files: dict[str, str | bytes] = {
        "report.md": _page(run, table, figures),
        "tables/kernels.csv": to_csv([column.name for column in table.columns], table.rows),
        "tables/kernels.tex": to_latex(table),
        f"{KERNELS}.json": json_bytes(plain.encode(run)),
    }
    for figure in figures:
        files[f"figures/{figure.name}.csv"] = to_csv(figure.columns, figure.records)
        for kind, drawn in paper.render(figure).items():
            files[f"figures/{figure.name}.{kind}"] = drawn
    return {path: data.encode() if isinstance(data, str) else data for path, data in sorted(files.items())}


def _page(run: KernelRun, table: Table, figures: Sequence[Figure]) -> str:
    stamp, packages = run.stamp, run.stamp.machine.packages
    where = stamp.gpu or f"{stamp.machine.cpu}: plain-PyTorch twins, which say nothing about speed"
    rates = [f"{name} {value:.4g}" for name, value in run.ceilings.items()]
    facts = [
        f"- **Run:** {stamp.run_id}, {stamp.created}, {revision(stamp.code.commit, stamp.code.dirty)}",
        f"- **Machine:** {where}",
        f"- **Software:** {', '.join(f'{name} {found}' for name, found in packages.items())}",
        f"- **Ceilings:** {', '.join(rates) or 'not measured, so no floor is claimed'}",
        f"- **Programmatic dependent launch of the fused kernels:** {'on' if run.pdl else 'off'}",
        *([f"- **Other processes on the GPU:** {beside(run)}"] if stamp.device == "cuda" else []),
    ]
    parts = ["# One kernel at a time", "\n".join(facts)]
    parts += [f"## {f.title}\n\n![{f.alt}](figures/{f.name}.svg)\n\n{f.caption}" for f in figures]
    parts.append(f"## Table\n\n{table.caption}\n\n{to_markdown(table).rstrip()}")
    if untimed := why_untimed(run):
        parts.append("## What has no time, and why\n\n" + "\n".join(f"- {line}" for line in untimed))
    parts += [f"## Floors\n\n```\n{(FLOORS or '').strip()}\n```", f"```\n{stamp.command}\n```"]
    return "\n\n".join(parts) + "\n"


def beside(run: KernelRun) -> str:
    """Who else was on the GPU, in words."""
    count = run.other_processes
    if not count:
        return "not known" if count is None else "none"
    return f"{count} at once: these times may be of a GPU that was shared"


def why_untimed(run: KernelRun) -> list[str]:
    """A line for every contender that failed somewhere."""
    reasons = (
        f"{r.model} {name_of(r.op, r.form)} {r.site}, M={r.rows}, {r.contender}: {r.status.value}, {r.reason}"
        for r in run.rows
        if r.reason
    )
    return list(dict.fromkeys(reasons))


def show_kernels(run: KernelRun, console: Console | None = None) -> None:
    """Print the table."""
    console = console or make_console()
    compared = compare(run)
    if run.rows and all(row.kernels == "twin" for row in run.rows):
        console.print("[yellow]Plain-PyTorch twins on a CPU: errors are real, times say nothing about speed.[/yellow]")
    console.print(rich_table(_narrow(kernel_table(compared))))
    counts = {verdict.value: sum(at.verdict == verdict.value for at in compared) for verdict in Claim}
    if any(counts.values()):
        console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if run.other_processes:
        console.print(f"[yellow]Other processes on the GPU: {beside(run)}.[/yellow]")
    for line in why_untimed(run):
        console.print(escape(line))


def _narrow(table: Table) -> Table:
    """The place in one column, without what is empty throughout."""
    place = Column("place", "Kernel, place, shape")
    names = [column.name for column in table.columns]
    kept = [i for i in range(5, len(names)) if any(row[i] is not None for row in table.rows)]
    rows = tuple((" ".join(str(v) for v in row[:5]), *(row[i] for i in kept)) for row in table.rows)
    return Table(table.name, table.title, table.caption, (place, *(table.columns[i] for i in kept)), rows)


def find_kernels(results_dir: Path, experiment: str, run_id: str) -> Path | None:
    """The kernels.json of a run, or None where the experiment is of another kind; UserError names what exists."""
    folder = results_dir / experiment
    files = sorted(folder.glob(f"*/{KERNELS}.json"), key=lambda file: by_time(file.parent.name))
    if not files:
        return None
    if run_id == "latest":
        return files[-1]
    for file in files:
        if file.parent.name == run_id:
            return file
    raise UserError(f"run={run_id} is no run in {folder}; there are {', '.join(f.parent.name for f in files)}")


def locate_kernels(results_dir: Path, name: str) -> Path | None:
    """The same of a run named EXPERIMENT/RUN_ID, EXPERIMENT (its latest) or by the folder's own path."""
    own = Path(name) / f"{KERNELS}.json"
    if own.is_file():
        return own
    experiment, _, run_id = name.partition("/")
    return find_kernels(results_dir, experiment, run_id or "latest")


def load_kernels(file: Path) -> KernelRun:
    """The stored run."""
    return read_run(KernelRun, file)
