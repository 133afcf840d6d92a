"""Statistics of repeated, paired measurements.

The replicate is the *round*: one pass over every cell in a fresh random order. A cell's value in a round is the median
of its window samples, because samples inside one window share a clock state and are not independent of each other.

**Speed-up.** A variant is compared with the baseline of the same round only, so that slow drift (clocks, heat) cancels.
The speed-up of a round is baseline / variant where lower is better and variant / baseline where higher is, so that
above 1 is always faster. The estimate is the median over rounds of that paired ratio.

**Interval.** Student's t on the logarithms of the paired ratios, 95 % per cell. A percentile bootstrap was tried and
rejected: five rounds allow no bootstrap interval with more than 94 % coverage of a median (the chance that all five
fall on one side of it is 2 / 2^5), the usual ones reach 85 %, and a corrected level of 99.9 % does not exist for them.
A ratio of two medians has nearly symmetric noise on the log scale, which is all the t interval needs;
`tests/experiments/test_stats.py` simulates its coverage under normal, heavy-tailed and contaminated noise. With fewer
than three rounds there is no interval, and so no verdict but `unresolved`.

**Two runs** share no rounds: there the ratio is that of the medians, with Welch's t on the logarithms of the rounds.

**Verdict.** `same` when the whole interval lies within +-1 % of parity; else `faster` or `slower` when the paired t
test stays below 5 % after Holm's step-down correction over all comparisons of the run, so that the chance of even one
false `faster` or `slower` in the whole run is at most 5 %; else `unresolved`.

**Looks.** A sweep that may stop early looks at a comparison after every round, and stopping where it looks good would
find differences that are not there. So the error is spent over the looks: half of it at the last planned round, the
rest in equal parts at the earlier ones (`Looks`), which holds whatever the sequence of data, by Bonferroni's bound.
Stopping on the width of the interval alone, without that correction, is not safe with so few rounds: it prefers rounds
that scattered little by chance, and a run of 40 equal cells then held a false claim in 12 % of simulations, not 5 %.
Intervals stay the plain 95 % ones; `fusebench calibrate` counts how often they cover.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import fmean, median, stdev

CONFIDENCE = 0.95
EQUIVALENCE_MARGIN = 0.01
FAMILY_ALPHA = 0.05
MIN_ROUNDS = 3


class Claim(StrEnum):
    """What may be said of one cell against the baseline."""

    FASTER = "faster"
    SAME = "same"
    SLOWER = "slower"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class Looks:
    """After which numbers of rounds a comparison may be stopped: `first`, the next ..., `last` (the most planned)."""

    first: int
    last: int

    @classmethod
    def planned(cls, rounds: int, min_rounds: int, target_ci: float | None) -> "Looks":
        """Those of a protocol; without a target there is one look, the last."""
        return cls(rounds if target_ci is None else min(min_rounds, rounds), rounds)

    def price(self, rounds: int) -> float:
        """What a p-value after that many rounds is multiplied by: its part of the error is 1 / price.

        Fewer rounds than the first look's were ended by the clock or by the user, whatever the data said.
        """
        if self.first == self.last or rounds < self.first:
            return 1.0
        return 2.0 if rounds >= self.last else 2.0 * (self.last - self.first)


class SampleError(ValueError):
    """Samples that no time or rate can have: none at all, not finite, or not positive."""


@dataclass(frozen=True)
class Estimate:
    """A median over `n` rounds; `low` and `high` bound it with 95 % confidence, or are None where n is too small.

    `p_value` tests the hypothesis that the true value is 1 (two-sided); it means something for ratios only.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p_value: float = 1.0


def cell_value(samples: Sequence[float]) -> float:
    """One round's value of a cell: the median of its window samples. Raises SampleError, naming what is wrong."""
    if not samples:
        raise SampleError("no samples were taken")
    wrong = sum(not (math.isfinite(x) and x > 0) for x in samples)
    if wrong:
        raise SampleError(f"{wrong} of {len(samples)} samples are not finite and positive")
    return float(median(samples))


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Median of positive values with Student's interval on their logarithms (module docstring).

    The interval is that of the mean logarithm, which is the median where noise is symmetric; it is widened to hold the
    sample median in the rare skewed case (impossible up to six values) where it would not.
    """
    n = len(values)
    middle = float(median(values))
    if n < MIN_ROUNDS:
        return Estimate(middle, None, None, n)
    logs = [math.log(v) for v in values]
    mean = fmean(logs)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / (n - 1) / n)
    return _student(middle, mean, error, n - 1, n, confidence)


def unpaired_ratio(above: Sequence[float], below: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Ratio of the medians of two groups that share no rounds, with Welch's interval on their logarithms.

    Welch lets the groups differ in noise and size; `n` is that of the smaller. The interval holds what varies between
    rounds, not what else differs between the two sessions.
    """
    n = min(len(above), len(below))
    middle = float(median(above)) / float(median(below))
    if n < MIN_ROUNDS:
        return Estimate(middle, None, None, n)
    logs = [[math.log(v) for v in group] for group in (above, below)]
    variances = [stdev(group) ** 2 / len(group) for group in logs]
    total = sum(variances)
    shares = sum(v**2 / (len(group) - 1) for v, group in zip(variances, logs, strict=True))
    degrees = total**2 / shares if shares else n - 1
    return _student(middle, fmean(logs[0]) - fmean(logs[1]), math.sqrt(total), degrees, n, confidence)


def paired_ratios(
    baseline: Mapping[int, float], variant: Mapping[int, float], lower_is_better: bool
) -> dict[int, float]:
    """Speed-up per round, over the rounds that both have; above 1 is faster."""
    rounds = sorted(baseline.keys() & variant.keys())
    return {r: baseline[r] / variant[r] if lower_is_better else variant[r] / baseline[r] for r in rounds}


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm: the mean that treats a ratio and its inverse alike."""
    return math.exp(fmean(math.log(v) for v in values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: reject those <= alpha to hold the family-wise error."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def is_settled(values: Sequence[float], target_ci: float, looks: Looks, comparisons: int) -> bool:
    """Would more rounds of these paired ratios be wasted?

    Yes once they are precise (95 % half-width of the logarithm within `target_ci`) and their verdict is clear at this
    look's price: what is `faster` or `slower` survives Bonferroni over all `comparisons` of the run, so it survives
    Holm; what is `same` is so on an interval of the look's own confidence. Neither half alone would do: precision
    alone stops at 0.7 % without a verdict, a verdict alone stops on lucky rounds, and both leave intervals that cover
    too little (`fusebench calibrate`).
    """
    n = len(values)
    if n < max(looks.first, MIN_ROUNDS):
        return False
    plain, price = estimate(values), looks.price(n)
    if plain.low is None or plain.high is None or math.log(plain.high / plain.low) > 2 * target_ci:
        return False
    strict = estimate(values, 1 - (1 - CONFIDENCE) / price)
    return claim(strict, min(1.0, comparisons * price * plain.p_value)) is not Claim.UNRESOLVED


def claim(speedup: Estimate, adjusted_p: float, margin: float = EQUIVALENCE_MARGIN) -> Claim:
    """The verdict on one cell, from its speed-up and its family-wise adjusted p-value; `same` is within the margin."""
    if speedup.low is None or speedup.high is None:
        return Claim.UNRESOLVED
    if 1 - margin <= speedup.low and speedup.high <= 1 + margin:
        return Claim.SAME
    # An interval that was widened to hold the median may hold parity, whatever the test of the mean says.
    if adjusted_p > FAMILY_ALPHA or speedup.low <= 1 <= speedup.high:
        return Claim.UNRESOLVED
    return Claim.FASTER if speedup.low > 1 else Claim.SLOWER


def claims(
    speedups: Sequence[Estimate | None], looks: Looks | None = None, margin: float = EQUIVALENCE_MARGIN
) -> list[Claim | None]:
    """The verdict on each of a family of comparisons, None where there is none: every p-value pays for its look, where
    the comparison may have been stopped at one, and is then adjusted for all."""
    found = [s for s in speedups if s is not None]
    adjusted = iter(holm([min(1.0, s.p_value * (looks.price(s.n) if looks else 1.0)) for s in found]))
    return [claim(s, next(adjusted), margin) if s is not None else None for s in speedups]


def percentile(samples: Sequence[float], quantile: float) -> float | None:
    """Percentile by linear interpolation, or None where n does not support it.

    Supported means: the largest sample lies above the true percentile with 95 % probability, 1 - q^n >= 0.95. That
    takes 29 samples for p90, 59 for p95 and 299 for p99.
    """
    if not samples or quantile ** len(samples) > 1 - CONFIDENCE:
        return None
    ordered = sorted(samples)
    position = quantile * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values: Sequence[float]) -> float | None:
    """Noise between rounds: standard deviation of the logarithms, about the coefficient of variation."""
    return stdev(math.log(v) for v in values) if len(values) > 1 else None


def _student(middle: float, mean: float, error: float, degrees: float, n: int, confidence: float) -> Estimate:
    """Student's interval around a mean logarithm, widened to hold the median."""
    half = _t_quantile(degrees, confidence) * error
    low, high = min(math.exp(mean - half), middle), max(math.exp(mean + half), middle)
    return Estimate(middle, low, high, n, _p_value(mean, error, degrees))


@cache
def _t_quantile(degrees: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def _p_value(mean: float, standard_error: float, degrees: float) -> float:
    """Two-sided p-value of mean 0; data without any spread leave no doubt."""
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -abs(mean) / standard_error))
