"""From the baseline's traced step to a variant's, kernel by kernel: what was removed, added and changed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.config import BASELINE
from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Panel, Segment
from experiments.reporting.families import IDLE, OTHER, SLOTS, legend, slot_of
from experiments.reporting.figures.registry import caption_of, figure
from experiments.reporting.figures.traces import by_workload
from experiments.reporting.formats import Value, number, where
from experiments.reporting.ledgers import Traced, owner_of
from experiments.reporting.rows import Analysis

MOST_STEPS = 12
LONGEST_NAME = 30
GREY = SLOTS[OTHER]


@dataclass(frozen=True)
class Step:
    """One step of the waterfall: a kernel, or the time in which none or several ran. Microseconds and launches per
    step; `fate` is removed, added, changed, or empty for what is no kernel."""

    name: str
    owner: str
    fate: str
    before_us: float
    after_us: float
    before_count: float = 0.0
    after_count: float = 0.0

    @property
    def change_us(self) -> float:
        """Negative where the variant is faster."""
        return self.after_us - self.before_us

    @property
    def shows(self) -> bool:
        """A change of a nanosecond or more."""
        return abs(self.change_us) >= 1e-3


@figure("where", command="trace")
def waterfall(analysis: Analysis) -> Iterator[Figure]:
    """From the baseline's traced step to the variant's: each bar is a kernel that was removed, added or changed, per
    step and over all layers; then the idle time and what overlapping kernels share, so that the bars close exactly on
    the variant's step. Colours are the kernels' ops. The profiler's times: under programmatic dependent launch a
    kernel's holds its wait for the one before it, so that all bars together are right and single ones need not be."""
    for (model, workload), ledgers in by_workload(analysis):
        baselines = {g.cell.point: g for g in ledgers if g.cell.variant == BASELINE}
        pairs = [(baselines[g.cell.point], g) for g in ledgers if g.cell.point in baselines]
        pairs = [(before, after) for before, after in pairs if after is not before]
        if pairs:
            yield Figure(
                f"waterfall_{model}_{workload}",
                f"From the baseline to the variant, {model} {workload} (µs)",
                caption_of("waterfall"),
                f"Waterfall of kernel time per step on {model} {workload}, from the baseline to each traced variant.",
                tuple(_panel(before, after) for before, after in pairs),
                legend({op for pair in pairs for ledger in pair for _, op in _by_kernel(ledger)}, idle=True),
                ("model", "workload", "batch", "length", "variant", "kernel", "op", "fate", "baseline_launches",
                 "launches", "baseline_us", "us", "saved_us"),
                tuple(record for pair in pairs for record in _records(*pair)),
            )  # fmt: skip


def steps_between(before: Traced, after: Traced) -> list[Step]:
    """Every step, largest saving first; idle and shared time last. Their changes add up to that of the whole step."""
    old, new = _by_kernel(before), _by_kernel(after)
    nothing = (0.0, 0.0)
    kernels = [_kernel_step(*key, *old.get(key, nothing), *new.get(key, nothing)) for key in {**old, **new}]
    shared = [round(g.busy_us - sum(us for _, us in rows.values()), 6) for g, rows in ((before, old), (after, new))]
    rest = [Step("idle", "idle", "", before.idle_us, after.idle_us), Step("overlap", "overlap", "", *shared)]
    return [*sorted(kernels, key=lambda step: (step.change_us, step.name, step.owner)), *rest]


def _kernel_step(
    name: str, owner: str, before_count: float, before_us: float, after_count: float, after_us: float
) -> Step:
    fate = "changed" if before_count and after_count else ("removed" if before_count else "added")
    return Step(name, owner, fate, before_us, after_us, before_count, after_count)


def _by_kernel(ledger: Traced) -> dict[tuple[str, str], tuple[float, float]]:
    """(name, op) -> launches and microseconds per step."""
    sums: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for kernel in ledger.kernels:
        key = (kernel.name, owner_of(kernel.op, kernel.phase))
        count, us = sums[key]
        sums[key] = (count + kernel.count * ledger.per_step, us + kernel.total_us * ledger.per_step)
    return dict(sums)


def _panel(before: Traced, after: Traced) -> Panel:
    point = after.cell.point
    bars, level_us = [_total(before.label, before.step_us)], before.step_us
    for step in _folded(steps_between(before, after)):
        bars.append(_bar(step, level_us))
        level_us += step.change_us
    bars.append(_total(after.label, after.step_us))
    title = f"{where(point)}: {after.label}"
    return Panel(title, Bars("µs per step", (BarGroup("", tuple(bars)),)))


def _folded(steps: Sequence[Step]) -> list[Step]:
    """The kernels that matter most and the rest as one, in the order given; steps without a change are left out."""
    kernels = [step for step in steps if step.fate and step.shows]
    shown = set(sorted(kernels, key=lambda step: -abs(step.change_us))[:MOST_STEPS])
    rest = [step for step in kernels if step not in shown]
    folded = [step for step in kernels if step in shown]
    if rest:
        times = (sum(step.before_us for step in rest), sum(step.after_us for step in rest))
        folded.append(Step(f"{len(rest)} other kernels", OTHER, "changed", *times))
    return folded + [step for step in steps if not step.fate and step.shows]


def _total(name: str, us: float) -> Bar:
    return Bar(name, (Segment(name, GREY, us, f"{name}: {number(us)} µs per step"),), f"{number(us)} µs")


def _bar(step: Step, level_us: float) -> Bar:
    sign = "+" if step.change_us > 0 else "−"  # noqa: RUF001
    words = f"{sign}{number(abs(step.change_us))} {step.fate}".rstrip()
    tip = f"{step.name}\n{step.owner}: {number(step.before_us)} to {number(step.after_us)} µs per step"
    if step.fate:
        tip += f"\n{number(step.before_count)} to {number(step.after_count)} launches"
    color = IDLE if step.owner == "idle" else slot_of(step.owner)
    segment = Segment(step.name, color, abs(step.change_us), tip)
    label = step.name if len(step.name) <= LONGEST_NAME else f"{step.name[: LONGEST_NAME - 1]}…"
    return Bar(label, (segment,), words, min(level_us, level_us + step.change_us))


def _records(before: Traced, after: Traced) -> Iterator[tuple[Value, ...]]:
    p = after.cell.point
    for s in steps_between(before, after):
        counts = (s.before_count, s.after_count) if s.fate else (None, None)
        times = (s.before_us, s.after_us, -s.change_us)
        yield (p.model, p.workload, p.batch, p.length, after.cell.variant, s.name, s.owner, s.fate, *counts, *times)
