"""The run in a few numbers: speed-up per variant over all points, verdict counts, and how right the answers are."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.config import BASELINE
from experiments.records import CellResult, Row, Status, Verdict
from experiments.reporting.rows import Analysis, key_of
from experiments.reporting.run import is_right
from experiments.stats import Claim, Estimate, estimate, geometric_mean

PREFERRED = "fused"


@dataclass(frozen=True)
class Aggregate:
    """One variant on one model and workload, over its points.

    `speedup` is the geometric mean over the points that are ok, taken within each round that all of them have, then
    summarised over rounds as any other value. `slowest` and `fastest` are the rows with the least and the greatest
    speed-up.
    """

    model: str
    workload: str
    variant: str
    speedup: Estimate | None
    num_ok: int
    num_points: int
    slowest: Row | None
    fastest: Row | None
    claims: dict[str, int]


@dataclass(frozen=True)
class Correctness:
    """The worst that any cell of one variant on one model said of its answers; None where none was checked.

    Invalid cells may also be disturbed ones, so they are counted apart and are no sign of a wrong answer.
    """

    model: str
    variant: str
    verdict: Verdict | None
    num_invalid: int

    @property
    def ok(self) -> bool:
        """Checked, and nothing was wrong."""
        return self.verdict is not None and is_right(self.verdict)


def aggregates(analysis: Analysis) -> list[Aggregate]:
    """One per (model, workload, variant but the baseline), in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in analysis.primary:
        if row.variant != BASELINE:
            groups[row.model, row.workload, row.variant].append(row)
    return [_aggregate(analysis, *key, rows) for key, rows in groups.items()]


def _aggregate(analysis: Analysis, model: str, workload: str, variant: str, rows: list[Row]) -> Aggregate:
    measured = sorted((r for r in rows if r.speedup is not None), key=lambda r: r.speedup or 0.0)
    paired = [analysis.ratios[key_of(r)] for r in measured]
    rounds = sorted(set.intersection(*(set(p) for p in paired))) if paired else []
    by_round = [geometric_mean([p[r] for p in paired]) for r in rounds]
    return Aggregate(
        model,
        workload,
        variant,
        speedup=estimate(by_round) if by_round else None,
        num_ok=len(measured),
        num_points=len(rows),
        slowest=measured[0] if measured else None,
        fastest=measured[-1] if measured else None,
        claims=claim_counts(rows),
    )


def claim_counts(rows: list[Row] | tuple[Row, ...]) -> dict[str, int]:
    """How many rows have each verdict, in the order of Claim; those without a comparison are left out."""
    counts = Counter(r.verdict for r in rows if r.variant != BASELINE and r.speedup is not None)
    return {c.value: counts[c.value] for c in Claim}


def lead_of(variants: Iterable[str]) -> str | None:
    """The variant that is spoken of first: `fused`, else the last of the plan; never chosen by its result."""
    others = [v for v in variants if v != BASELINE]
    return PREFERRED if PREFERRED in others else (others[-1] if others else None)


def correctness(analysis: Analysis) -> list[Correctness]:
    """The worst verdict of each (model, variant), sorted as the variants are."""
    groups: dict[tuple[str, str], list[CellResult]] = defaultdict(list)
    for result in analysis.run.results:
        groups[result.cell.point.model, result.cell.variant].append(result)
    order = {variant: i for i, variant in enumerate(analysis.run.variants)}
    return [
        Correctness(model, variant, _worst_verdict(cells), sum(c.status is Status.INVALID for c in cells))
        for (model, variant), cells in sorted(groups.items(), key=lambda g: (g[0][0], order[g[0][1]]))
    ]


def _worst_verdict(cells: list[CellResult]) -> Verdict | None:
    verdicts = [c.verdict for c in cells if c.verdict is not None]
    return max(verdicts, key=lambda v: (not is_right(v), _rank(v.kl_max), -v.top1_agreement), default=None)


def _rank(kl: float | None) -> float:
    """NaN is worse than any number, and none is better."""
    if kl is None:
        return -1.0
    return float("inf") if kl != kl else kl
