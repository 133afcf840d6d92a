"""Figures of the ablation: from the baseline's time to the fused engine's, rung by rung."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from experiments.config import BASELINE
from experiments.reporting.ablation import ADDED, LEFT_OUT, Ablation, Worth, ablations
from experiments.reporting.charts.palette import GLYPHS
from experiments.reporting.charts.specs import Bar, BarGroup, Bars, Figure, Panel, Segment
from experiments.reporting.figures.registry import caption_of, figure
from experiments.reporting.formats import Value, interval, number, points_of, ratio, where
from experiments.reporting.rows import Analysis

MAX_POINTS = 6
TOTAL, SAVES, COSTS, REST = 0, 1, 4, 8
LEGEND = (("measured", TOTAL), ("saves", SAVES), ("costs", COSTS), ("overlap: what the rungs do not add up to", REST))


@figure("faster")
def ablation(analysis: Analysis) -> Iterator[Figure]:
    """What each rung is worth, added to nothing (or to what it needs) and left out of the whole, from variants that
    differ in it alone. Neither adds up to what all rungs gain together, because rungs overlap and depend on each other:
    the grey bar is that difference, measured, not spread over the rungs; rungs that this run has not are in it too, and
    named above it. The mark is the verdict on the rung, ? is unresolved."""
    twin = " (twin)" if analysis.run.is_twin else ""
    groups: dict[tuple[str, str, str], list[Ablation]] = defaultdict(list)
    for found in ablations(analysis):
        if found.full:
            groups[found.point.model, found.point.workload, found.full].append(found)
    for (model, workload, full), points in groups.items():
        panels = [panel for a in points[:MAX_POINTS] for panel in _panels(a)]
        yield Figure(
            f"ablation_{full}_{model}_{workload}",
            f"What each rung is worth, {model} {workload}{twin}",
            caption_of("ablation"),
            f"Waterfalls from {BASELINE} to {full} by rung on {model} {workload}, for {points_of(len(points))}.",
            tuple(panels),
            LEGEND,
            ("model", "workload", "batch", "length", "how", "rung", "without", "having", "saved_ms"),
            tuple(record for a in points for record in _records(a)),
        )


def _records(a: Ablation) -> Iterator[tuple[Value, ...]]:
    place = (a.point.model, a.point.workload, a.point.batch, a.point.length)
    for w in a.worths:
        yield (*place, w.rung.how, w.rung.name, w.rung.without, w.rung.having, w.saved_ms)
    if a.full_ms is not None:
        yield (*place, "together", "all", BASELINE, a.full, a.baseline_ms - a.full_ms)


def _panels(a: Ablation) -> Iterator[Panel]:
    place = where(a.point)
    if added := a.of(ADDED):
        yield Panel(f"{place}: each added{_but_for(a, ADDED)}", _waterfall(a, added, rest_last=True))
    if left_out := a.of(LEFT_OUT):
        title = f"{place}: each left out of {a.full}{_but_for(a, LEFT_OUT)}"
        yield Panel(title, _waterfall(a, left_out, rest_last=False))


def _but_for(a: Ablation, how: str) -> str:
    lacking = a.lacking(how)
    return f", but for {', '.join(lacking)}" if lacking else ""


def _waterfall(a: Ablation, worths: Sequence[Worth], rest_last: bool) -> Bars:
    """From the baseline to the full variant: what is added starts at the one, what is left out ends at the other."""
    full_ms = a.full_ms if a.full_ms is not None else a.baseline_ms
    rest_ms = a.baseline_ms - full_ms - sum(w.saved_ms or 0.0 for w in worths)
    said = f"{number(abs(rest_ms))} ms {'more' if rest_ms > 0 else 'less'} together than the sum of the rungs"
    steps = [(w.saved_ms or 0.0, _segment(w), _text(w)) for w in worths]
    steps.insert(
        len(steps) if rest_last else 0, (rest_ms, Segment("overlap", REST, abs(rest_ms), said), _signed(rest_ms))
    )
    bars, level_ms = [_total(BASELINE, a.baseline_ms)], a.baseline_ms
    for saved_ms, segment, text in steps:
        bars.append(Bar(segment.name, (segment,), text, min(level_ms, level_ms - saved_ms)))
        level_ms -= saved_ms
    return Bars("ms", (BarGroup("", (*bars, _total(a.full, full_ms))),))


def _total(name: str, ms: float) -> Bar:
    return Bar(name, (Segment(name, TOTAL, ms, f"{name}: {number(ms)} ms, measured"),), number(ms))


def _segment(w: Worth) -> Segment:
    saved_ms = w.saved_ms or 0.0
    return Segment(w.rung.name, SAVES if saved_ms >= 0 else COSTS, abs(saved_ms), _tip(w))


def _signed(saved_ms: float) -> str:
    """A saving as a change of time."""
    return f"{'-' if saved_ms >= 0 else '+'}{number(abs(saved_ms), 3)}"


def _text(w: Worth) -> str:
    return _signed(w.saved_ms) + f" {GLYPHS[w.verdict]}" if w.saved_ms is not None and w.verdict else "no value"


def _tip(w: Worth) -> str:
    head = f"{w.rung.name}, {w.rung.how}\n{w.rung.having} against {w.rung.without}"
    if w.speedup is None:
        return f"{head}\none of the two has no value here"
    bounds = interval(w.speedup.low, w.speedup.high)
    return f"{head}\nspeed-up {ratio(w.speedup.value)} ({bounds}), n={w.speedup.n}, {w.verdict}"
