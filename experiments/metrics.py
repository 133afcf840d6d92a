"""The metrics of a cell: name, unit, direction, and how a round's value is formed from the raw samples.

Registering one is a decorated function; its docstring is the definition that reports print.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from experiments.floors import Floor
from experiments.records import CellResult
from experiments.stats import cell_value, percentile


class Better(StrEnum):
    """Which direction is an improvement."""

    LOWER = "lower"
    HIGHER = "higher"


CellValue = Callable[[CellResult], float | None]


@dataclass(frozen=True)
class Metric:
    """One quantity of a cell.

    `workloads` are kinds of workload. `value` gives a round's value from a cell that ended ok: None where the cell did
    not sample it, SampleError where its samples are no measurement. `primary` marks the one that verdicts are counted
    on; `sampled` names the raw samples behind it; `bounded` says whether the workload's floor bounds it.
    """

    name: str
    unit: str
    better: Better
    workloads: tuple[str, ...]
    sampled: str
    primary: bool
    definition: str
    value: CellValue
    bounded: bool = True

    def floor(self, floor: Floor) -> float | None:
        """The physical bound of this metric, in its unit: a least time, or a greatest rate; None for anything else."""
        if self.unit not in ("ms", "tokens/s"):
            return None
        return floor.floor_ms if self.better is Better.LOWER else 1e3 * floor.tokens / floor.floor_ms

    def share_of_floor(self, value: float, floor: float) -> float:
        """1 at the bound; below 1 is the share of the attainable speed that was reached."""
        return floor / value if self.better is Better.LOWER else value / floor


METRICS: dict[str, Metric] = {}


def metric(
    unit: str, better: Better, workloads: tuple[str, ...], sampled: str, primary: bool = False, bounded: bool = True
) -> Callable[[CellValue], CellValue]:
    """Register the decorated function under its own name."""

    def register(value: CellValue) -> CellValue:
        name = value.__name__
        definition = " ".join((value.__doc__ or "").split())
        METRICS[name] = Metric(name, unit, better, workloads, sampled, primary, definition, value, bounded)
        return value

    return register


def primary_metric(workload: str) -> Metric | None:
    """The metric that a workload's verdicts are counted on."""
    return next((m for m in METRICS.values() if m.primary and workload in m.workloads), None)


def metrics_of(workload: str) -> list[Metric]:
    """All metrics of a workload, the primary one first."""
    return sorted((m for m in METRICS.values() if workload in m.workloads), key=lambda m: not m.primary)


def _sampled(result: CellResult, name: str) -> float | None:
    return cell_value(result.samples[name]) if name in result.samples else None


def _rate(result: CellResult, name: str, tokens: int) -> float | None:
    time_ms = _sampled(result, name)
    return None if time_ms is None else 1e3 * tokens / time_ms


@metric("ms", Better.LOWER, ("decode",), "step_ms", primary=True)
def step_ms(result: CellResult) -> float | None:
    """Wall time of one decode step of the whole engine, host included: a free-running window of steps with one
    synchronisation at its end, divided by its steps; the median over the windows of a round."""
    return _sampled(result, "step_ms")


@metric("ms", Better.LOWER, ("prefill",), "ttft_ms", primary=True)
def ttft_ms(result: CellResult) -> float | None:
    """Wall time from handing the prompts to the engine until the first token of each is on the host; the median over
    the repeats of a round."""
    return _sampled(result, "ttft_ms")


@metric("tokens/s", Better.HIGHER, ("offline",), "output_tokens_per_s", primary=True)
def output_tokens_per_s(result: CellResult) -> float | None:
    """Output tokens of a whole batch of requests over the wall time from the first request in to the last token out;
    the median over the repeats of a round."""
    return _sampled(result, "output_tokens_per_s")


@metric("ms", Better.LOWER, ("prefill",), "ttft_launch_ms", bounded=False)
def ttft_launch_ms(result: CellResult) -> float | None:
    """The part of ttft_ms until the engine has launched its first step: scheduling, packing, the upload and the launch
    of the graph, all on the host; the median over the repeats of a round. None where launching waits for the step."""
    return _sampled(result, "ttft_launch_ms")


@metric("ms", Better.LOWER, ("decode",), "step_device_ms")
def step_device_ms(result: CellResult) -> float | None:
    """Device time of one step between two CUDA events, host gaps inside the step included; the median over the steps of
    a round. The difference to the wall time is what the host adds between steps."""
    return _sampled(result, "step_device_ms")


@metric("tokens/s", Better.HIGHER, ("decode",), "step_ms")
def decode_tokens_per_s(result: CellResult) -> float | None:
    """Tokens decoded per second over the whole batch: batch / step_ms."""
    return _rate(result, "step_ms", result.cell.point.batch)


@metric("tokens/s", Better.HIGHER, ("prefill",), "ttft_ms")
def prefill_tokens_per_s(result: CellResult) -> float | None:
    """Prompt tokens taken in per second over the whole batch: batch x length / ttft_ms."""
    return _rate(result, "ttft_ms", result.cell.point.batch * result.cell.point.length)


@metric("ms", Better.LOWER, ("shared_prefix",), "warm_ttft_ms", primary=True)
def warm_ttft_ms(result: CellResult) -> float | None:
    """Wall time from handing over the prompts whose prefix is in the cache until the first token of each is on the
    host; the median over the repeats of a round."""
    return _sampled(result, "warm_ttft_ms")


@metric("ms", Better.LOWER, ("shared_prefix",), "cold_ttft_ms", bounded=False)
def cold_ttft_ms(result: CellResult) -> float | None:
    """The same for the one prompt that comes first and brings its prefix into the cache."""
    return _sampled(result, "cold_ttft_ms")


def _percentiles(name: str, what: str, primary: str = "", bounded: bool = False) -> None:
    """Register `NAME_p50_ms`, `..._p90_ms` and `..._p99_ms` of serving; the high ones only where n supports them."""
    for quantile in (0.5, 0.9, 0.99):
        sampled = f"{name}_ms"

        def value(result: CellResult, quantile: float = quantile, sampled: str = sampled) -> float | None:
            middle = _sampled(result, sampled)
            return middle if quantile == 0.5 or middle is None else percentile(result.samples[sampled], quantile)

        value.__name__ = f"{name}_p{100 * quantile:.0f}_ms"
        value.__doc__ = f"Percentile {100 * quantile:.0f} over a round's {what}"
        metric("ms", Better.LOWER, ("serving",), sampled, value.__name__ == primary, bounded)(value)


_percentiles(
    "itl",
    "tokens of the time between one token of a request and its next, as they reach the host.",
    primary="itl_p50_ms",
    bounded=True,
)
_percentiles("ttft", "requests of the time from when a request was due until its first token is on the host.")
_percentiles("e2e", "requests of the time from when a request was due until its last token is on the host.")


@metric("requests/s", Better.HIGHER, ("serving",), "goodput_requests_per_s", bounded=False)
def goodput_requests_per_s(result: CellResult) -> float | None:
    """Requests within both limits of the workload (first token by ttft_slo_ms, the others itl_slo_ms apart on average)
    over the time from the first arrival to the last token; the median over the windows of a round. No value where no
    request was: the table of serving says so."""
    return _sampled(result, "goodput_requests_per_s")


@metric("requests/s", Better.HIGHER, ("serving",), "requests_per_s", bounded=False)
def requests_per_s(result: CellResult) -> float | None:
    """All requests over the same time: about the rate of arrival until the engine is saturated."""
    return _sampled(result, "requests_per_s")


@metric("tokens/s", Better.HIGHER, ("serving",), "output_tokens_per_s", bounded=False)
def served_tokens_per_s(result: CellResult) -> float | None:
    """Output tokens over the same time."""
    return _sampled(result, "output_tokens_per_s")


@metric("J/token", Better.LOWER, ("decode", "prefill", "offline"), "energy_j")
def energy_j_per_token(result: CellResult) -> float | None:
    """Energy that the whole GPU took while the cell was measured, its warm-up included, over the tokens that the engine
    worked on in that time: generated ones, in a prefill those of the prompts. Read from the GPU's own counter."""
    # The counter is one GPU's, the tokens are those of all ranks.
    energy_j = result.clocks.get("energy_j", 0.0) if result.counters.get("ranks", 1.0) == 1 else 0.0
    counter = "prefilled_tokens" if "ttft_ms" in result.samples else "generated_tokens"
    tokens = result.counters.get(counter, 0.0)
    return cell_value([energy_j / tokens]) if energy_j > 0 and tokens > 0 else None
