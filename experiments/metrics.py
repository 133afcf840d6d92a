"""The metrics of a cell: name, unit, direction, and how a round's value is formed from the raw samples.

Registering one is a decorated function; its docstring is the definition that reports print.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from experiments.floors import Floor
from experiments.records import CellResult
from experiments.stats import cell_value


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
    on; `sampled` names the raw samples behind it.
    """

    name: str
    unit: str
    better: Better
    workloads: tuple[str, ...]
    sampled: str
    primary: bool
    definition: str
    value: CellValue

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
    unit: str, better: Better, workloads: tuple[str, ...], sampled: str, primary: bool = False
) -> Callable[[CellValue], CellValue]:
    """Register the decorated function under its own name."""

    def register(value: CellValue) -> CellValue:
        name = value.__name__
        definition = " ".join((value.__doc__ or "").split())
        METRICS[name] = Metric(name, unit, better, workloads, sampled, primary, definition, value)
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


@metric("ms", Better.LOWER, ("decode", "prefill"), "step_device_ms")
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


@metric("J/token", Better.LOWER, ("decode", "prefill", "offline"), "energy_j")
def energy_j_per_token(result: CellResult) -> float | None:
    """Energy that the whole GPU took while the cell was measured, its warm-up included, over the tokens that the engine
    worked on in that time: generated ones, in a prefill those of the prompts. Read from the GPU's own counter."""
    energy_j = result.clocks.get("energy_j", 0.0)
    counter = "prefilled_tokens" if "ttft_ms" in result.samples else "generated_tokens"
    tokens = result.counters.get(counter, 0.0)
    return cell_value([energy_j / tokens]) if energy_j > 0 and tokens > 0 else None
