"""Two runs, or two variants of one run, cell by cell: speed-up with its interval, and a verdict.

Variants of one run are paired within rounds, as in the report. Two runs share no rounds, so their intervals are
Welch's. Either way Holm's correction runs over all cells that are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.metrics import METRICS, Better
from experiments.records import Point, Row, Status
from experiments.reporting.rows import Analysis, key_of, point_of
from experiments.stats import EQUIVALENCE_MARGIN, Claim, Estimate, claims, estimate, paired_ratios, unpaired_ratio

Key = tuple[Point, str]


@dataclass(frozen=True)
class Side:
    """One of two sides: a run, and one variant of it, or None for each variant against itself."""

    analysis: Analysis
    variant: str | None = None

    def rows(self) -> dict[Key, Row]:
        """The primary rows by what they are compared on."""
        rows = [r for r in self.analysis.primary if self.variant in (None, r.variant)]
        return {(point_of(r), "" if self.variant else r.variant): r for r in rows}


@dataclass(frozen=True)
class Pair:
    """One cell on both sides. `speedup` is above 1 where the second is faster.

    Where the two cannot be compared it is None, and `reason` says why.
    """

    before: Row | None
    after: Row | None
    speedup: Estimate | None = None
    verdict: Claim | None = None
    reason: str = ""

    @property
    def row(self) -> Row:
        """Either side's row: where this is."""
        found = self.before or self.after
        assert found is not None
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The variants on the sides that have the cell."""
        return tuple(row.variant for row in (self.before, self.after) if row)

    def is_regression(self, margin: float) -> bool:
        """Slower by more than the margin, or measured before and failing now."""
        if self.speedup is not None:
            return self.verdict is Claim.SLOWER and self.speedup.value < 1 - margin
        was_ok = self.before is not None and self.before.status is Status.OK
        return was_ok and self.after is not None and self.after.status not in (Status.OK, Status.SKIPPED)


def compare(before: Side, after: Side, margin: float, mixed: bool = False) -> list[Pair]:
    """Every cell of either side, in the order of the first. `mixed` lets twins be compared with compiled kernels."""
    sides = before.rows(), after.rows()
    pairs = [_pair(before, after, sides[0].get(key), sides[1].get(key), mixed) for key in _keys(*sides)]
    # Only pairs within a run can have ended its rounds.
    looks = before.analysis.run.info.looks if before.analysis is after.analysis else None
    verdicts = claims([p.speedup for p in pairs], looks, min(margin, EQUIVALENCE_MARGIN))
    return [replace(p, verdict=verdict) for p, verdict in zip(pairs, verdicts, strict=True)]


def _keys(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> list[Key]:
    """By point, then in the order of the variants."""
    order = {variant: i for i, variant in enumerate(dict.fromkeys(v for _, v in [*before, *after]))}
    return sorted(before.keys() | after.keys(), key=lambda key: (key[0], order[key[1]]))


def _pair(before: Side, after: Side, old: Row | None, new: Row | None, mixed: bool) -> Pair:
    if old is None or new is None:
        return Pair(old, new, reason=f"only {'B' if old is None else 'A'} has it")
    ended = [f"{row.status} in {side}: {row.reason}" for side, row in (("A", old), ("B", new)) if row.median is None]
    if ended:
        return Pair(old, new, reason="; ".join(ended))
    if old.metric != new.metric:
        return Pair(old, new, reason=f"A has {old.metric}, B has {new.metric}")
    if old.kernels != new.kernels and not mixed:
        return Pair(old, new, reason=f"A ran {old.kernels} kernels, B {new.kernels}")
    speedup = _speedup(before.analysis, after.analysis, old, new)
    return Pair(old, new, speedup, reason="" if speedup else "no round has both")


def _speedup(before: Analysis, after: Analysis, old: Row, new: Row) -> Estimate | None:
    values = before.values[key_of(old)], after.values[key_of(new)]
    lower_is_better = METRICS[old.metric].better is Better.LOWER
    if before is after:
        ratios = paired_ratios(*values, lower_is_better)
        return estimate(list(ratios.values())) if ratios else None
    above, below = values if lower_is_better else reversed(values)
    return unpaired_ratio(list(above.values()), list(below.values()))
