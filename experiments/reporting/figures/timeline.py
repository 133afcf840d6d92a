"""The timeline of a traced step: every kernel where it ran, the variants of a point under each other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from experiments.reporting.charts.specs import Figure, Lane, Panel, Span, Spans
from experiments.reporting.families import legend, slot_of
from experiments.reporting.figures.registry import caption_of, figure
from experiments.reporting.figures.traces import by_workload
from experiments.reporting.formats import Value, number, where
from experiments.reporting.ledgers import Interval, Traced
from experiments.reporting.rows import Analysis

X_LABEL = "µs from the first kernel"


@figure("where", command="trace")
def timeline(analysis: Analysis) -> Iterator[Figure]:
    """One traced step of median length per variant, on its first device, on one time axis: kernels as bars, gaps left
    empty. Below it, one layer from the middle of that step. A kernel that starts before the one ahead of it has ended
    stands on a line of its own: a second stream's, or one under programmatic dependent launch, whose bar holds its wait
    for the one ahead. The profiler's times: read order and gaps here, not speed."""
    for (model, workload), found in by_workload(analysis):
        ledgers = [ledger for ledger in found if ledger.step]
        panels: list[Panel] = []
        for point, group in groupby(ledgers, key=lambda ledger: ledger.cell.point):
            panels += _panels(where(point), list(group))
        if panels:
            yield Figure(
                f"timeline_{model}_{workload}",
                f"A step on the device, {model} {workload}",
                caption_of("timeline"),
                f"Timeline of the kernels of one step on {model} {workload}, one lane per traced variant.",
                tuple(panels),
                legend({work.owner for ledger in ledgers for work in ledger.step}),
                ("model", "workload", "batch", "length", "variant", "start_us", "duration_us", "kernel", "layer", "op"),
                tuple(_records(ledgers)),
            )


def _panels(place: str, ledgers: Sequence[Traced]) -> Iterator[Panel]:
    """The whole step, and one layer where every variant names its layers."""
    yield Panel(f"{place}: the step", Spans(X_LABEL, tuple(_lane(g.label, g.step) for g in ledgers)))
    layer = _middle_layer(ledgers)
    parts = [(ledger.label, one_layer(ledger.step, layer)) for ledger in ledgers]
    if layer and all(part for _, part in parts):
        yield Panel(f"{place}: layer {layer}", Spans(X_LABEL, tuple(_lane(*part) for part in parts)))


def _middle_layer(ledgers: Sequence[Traced]) -> str:
    numbers = sorted({int(work.layer) for work in ledgers[0].step if work.layer.isdecimal()})
    return str(numbers[len(numbers) // 2]) if numbers else ""


def one_layer(step: Sequence[Interval], layer: str) -> tuple[Interval, ...]:
    """All work from the layer's first kernel to its last, its start moved to zero."""
    own = [i for i, work in enumerate(step) if work.layer == layer]
    if not own:
        return ()
    part = step[own[0] : own[-1] + 1]
    return tuple(replace(work, start_us=work.start_us - part[0].start_us) for work in part)


def _lane(variant: str, step: Sequence[Interval]) -> Lane:
    """Overlapping work goes to the first line that is free."""
    spans, free_us = [], [0.0]
    for work in step:
        track = next((i for i, end_us in enumerate(free_us) if end_us <= work.start_us), len(free_us))
        free_us[track : track + 1] = [work.end_us]
        spans.append(Span(work.start_us, work.end_us, slot_of(work.owner), work.owner, _tip(variant, work), track))
    end_us = max((work.end_us for work in step), default=0.0)
    return Lane(variant, tuple(spans), f"{len(step)} kernels, {number(end_us)} µs")


def _tip(variant: str, work: Interval) -> str:
    place = f", layer {work.layer}" if work.layer else ""
    times = f"{number(work.duration_us)} µs, from {number(work.start_us)} µs"
    return f"{variant}: {work.owner}{place}\n{work.name}\n{times}"


def _records(ledgers: Sequence[Traced]) -> Iterator[tuple[Value, ...]]:
    for ledger in ledgers:
        p = ledger.cell.point
        head = (p.model, p.workload, p.batch, p.length, ledger.cell.variant)
        for work in ledger.step:
            yield (*head, work.start_us, work.duration_us, work.name, work.layer, work.owner)
