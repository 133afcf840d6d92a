"""Ablation: what each rung of a kind of variant is worth, from variants that differ in that rung alone.

A rung is a switch, or a flag of the runtime. It is worth one thing added to nothing (or to the rungs that it needs) and
another left out of the whole: rungs overlap (two that remove the same traffic) and depend on each other, so neither
adds up to what all together gain. What is missing to that is shown as a bar of its own, never spread over the rungs.

Where all engines of a large model do not fit on the GPU together, a run has some of the rungs only. Without a variant
that has every switch on, nothing can be left out and there is no waterfall, but what was added has its worth.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

from experiments import plain
from experiments.config import BASELINE, VariantConfig
from experiments.metrics import primary_metric
from experiments.records import Point
from experiments.reporting.rows import Analysis
from experiments.stats import Claim, Estimate, claims, estimate, paired_ratios

ADDED, LEFT_OUT = "added", "left out"


@dataclass(frozen=True)
class Rung:
    """A rung and two variants that differ in it alone: `without` and `having`."""

    name: str
    how: str
    without: str
    having: str


@dataclass(frozen=True)
class Ladder:
    """Every rung of one kind of variant that was measured apart; `switches` are all that the kind has.

    `full` has them all; empty where the run has no such variant.
    """

    full: str
    rungs: tuple[Rung, ...]
    switches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Worth:
    """What a rung saves at one point: the median of the paired differences, the paired speed-up and its verdict.

    All None where one of the two variants has no value there.
    """

    rung: Rung
    saved_ms: float | None = None
    speedup: Estimate | None = None
    verdict: Claim | None = None


@dataclass(frozen=True)
class Ablation:
    """A ladder at one point: the baseline's time, the full variant's where there is one, what each rung is worth."""

    point: Point
    ladder: Ladder
    baseline_ms: float
    full_ms: float | None
    worths: tuple[Worth, ...]

    @property
    def full(self) -> str:
        """The variant that has every rung."""
        return self.ladder.full

    def of(self, how: str) -> tuple[Worth, ...]:
        """The rungs added, or those left out of the whole."""
        return tuple(w for w in self.worths if w.rung.how == how)

    def lacking(self, how: str) -> list[str]:
        """The switches that were not measured so in this run."""
        measured = {w.rung.name for w in self.of(how)}
        return [name for name in self.ladder.switches if name not in measured]


def ladders(variants: Collection[VariantConfig]) -> list[Ladder]:
    """One for each kind of which two rungs or more were measured apart."""
    found = []
    start = {v.name: frozenset(_switched_on(v)) for v in variants if v.name == BASELINE}
    for kind in dict.fromkeys(v.kind for v in variants if v.name != BASELINE):
        alike = [v for v in variants if v.kind == kind]
        on = {v.name: frozenset(_switched_on(v)) for v in alike}
        switches = tuple(dict.fromkeys(name for v in alike for name in v.switches))
        whole = [v for v in on if on[v].issuperset(switches)]
        full = max(whole, key=lambda v: len(on[v]), default="")
        every = dict.fromkeys(name for v in alike for name in _switched_on(v))
        names = [name for name in every if any(name not in those for those in on.values())]
        rungs = [r for name in names for r in (_added(name, on | start, full), _left_out(name, on, full)) if r]
        if len({r.name for r in rungs}) > 1:
            found.append(Ladder(full, tuple(rungs), switches))
    return found


def _switched_on(variant: VariantConfig) -> list[str]:
    """Its switches that are on, and the flags of its runtime."""
    flags = variant.switches | plain.encode(variant.runtime)
    return [name for name, on in flags.items() if on is True]


def _added(name: str, on: dict[str, frozenset[str]], full: str) -> Rung | None:
    """The rung on top of as few others as there is a pair of variants for."""
    pairs = [(a, b) for b in on if b != full for a in on if on[b] - on[a] == {name} and on[a] < on[b]]
    without, having = min(pairs, key=lambda pair: len(on[pair[0]]), default=("", ""))
    return Rung(name, ADDED, without, having) if having else None


def _left_out(name: str, on: dict[str, frozenset[str]], full: str) -> Rung | None:
    without = next((v for v in on if full and on[v] == on[full] - {name}), "")
    return Rung(name, LEFT_OUT, without, full) if without else None


def ablations(analysis: Analysis) -> list[Ablation]:
    """Every ladder at every point where a time is measured; Holm's correction runs over all rungs and points."""
    found = [a for ladder in ladders(analysis.run.info.variants.values()) for a in _at_points(analysis, ladder)]
    verdicts = iter(claims([w.speedup for a in found for w in a.worths], analysis.run.info.looks))
    return [replace(a, worths=tuple(replace(w, verdict=next(verdicts)) for w in a.worths)) for a in found]


def _at_points(analysis: Analysis, ladder: Ladder) -> Iterator[Ablation]:
    for point in analysis.run.points:
        metric = primary_metric(analysis.run.info.kind(point.workload))
        if metric is None or metric.unit != "ms":
            continue
        times = {v: analysis.values.get((point, v, metric.name), {}) for v in analysis.run.variants}
        first, last = times.get(BASELINE), times.get(ladder.full, {})
        if first and (last or not ladder.full):
            worths = tuple(_worth(rung, times) for rung in ladder.rungs)
            yield Ablation(point, ladder, median(first.values()), median(last.values()) if last else None, worths)


def _worth(rung: Rung, times: Mapping[str, Mapping[int, float]]) -> Worth:
    without, having = times[rung.without], times[rung.having]
    ratios = paired_ratios(without, having, lower_is_better=True)
    if not ratios:
        return Worth(rung)
    saved_ms = median(without[r] - having[r] for r in ratios)
    return Worth(rung, saved_ms, estimate(list(ratios.values())))
