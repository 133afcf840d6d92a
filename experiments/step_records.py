"""What `fusebench tune by=step` keeps: plain values without torch, one JSON file in a folder per run."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from experiments import plain
from experiments.durable import write_json
from experiments.stats import Estimate, estimate, paired_ratios

TUNE = "tune"


@dataclass(frozen=True)
class Tried:
    """One way to run a kernel, all else as it was best by then. `step_us` is None where there is none, for `reason`."""

    site: str
    choice: str
    step_us: float | None
    reason: str = ""


@dataclass(frozen=True)
class Kept:
    """A change that was kept: microseconds of a step before and after."""

    site: str
    choice: str
    before_us: float
    after_us: float


@dataclass(frozen=True)
class StepCell:
    """The search at one decode cell, with so many of the model's layers; times are microseconds of a whole step.

    `noise` is by how much equal configurations differed, as a share; None where that was not measured. `start_us` and
    `end_us`, the engine as it was and with what was kept, were measured in turns where they are equally many.
    `attention_us` has attention's best cut in addition, where one was kept. `session` counts where a file holds more.
    """

    model: str
    batch: int
    context: int
    layers: int
    noise: float | None
    start_us: tuple[float, ...]
    end_us: tuple[float, ...]
    attention_us: tuple[float, ...] = ()
    kept: tuple[Kept, ...] = ()
    tried: tuple[Tried, ...] = ()
    session: int = 1

    @property
    def speedup(self) -> Estimate:
        """Start over end; without an interval where they did not take turns."""
        return speedup(self.start_us, self.end_us)


@dataclass(frozen=True)
class StepRun:
    """A run of `fusebench tune by=step`; `commit` may say in words what a commit alone does not."""

    schema: int
    run_id: str
    created: str
    command: str
    commit: str
    gpu: str
    software: dict[str, str]
    cells: tuple[StepCell, ...] = ()


def speedup(before_us: tuple[float, ...], after_us: tuple[float, ...]) -> Estimate:
    """How many times faster, over rounds that both have; else the ratio of the medians alone."""
    if len(before_us) != len(after_us):
        return Estimate(median(before_us) / median(after_us), None, None, 1)
    ratios = paired_ratios(dict(enumerate(before_us)), dict(enumerate(after_us)), lower_is_better=True)
    return estimate(list(ratios.values()))


def write_steps(folder: Path, run: StepRun) -> Path:
    """Replace <folder>/tune.json, whole or not at all."""
    path = folder / f"{TUNE}.json"
    write_json(path, plain.encode(run), indent=1)
    return path
