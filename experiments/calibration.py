"""How often the analysis is right: sweeps with a known truth, through the code that judges real ones.

A simulated sweep takes its plan from `make_plan`, stops points by `Settling`, and is read by `analyse`, as a real one
is; only the samples are drawn. A cell's time is 1 ms, times the injected slow-down, times exp of

- drift shared by neighbours in time: an AR(1) walk from cell to cell with a standard deviation of 1 %;
- a disturbance of the whole cell, of one of the kinds in `NOISES`, with a scale of 0.3 %;
- normal noise of each window, 0.2 %.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from experiments.config import BASELINE, ExperimentConfig, ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.environment import Code, Environment
from experiments.manifest import new_manifest
from experiments.plan import make_plan
from experiments.records import CellResult, Row, Status, Verdict
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import assemble
from experiments.settling import Settling
from experiments.stats import Claim

POINTS = ([1, 2, 4, 8, 16, 32, 64, 128], [128, 512, 1024, 2048, 4096])
EFFECTS = (0.0, 0.005, 0.01, 0.02, 0.05)
SCALE, WINDOW_SCALE = 0.003, 0.002
DRIFT_STEP, DRIFT_MEMORY = 0.002, 0.98
VARIANT = "variant"
NO_MACHINE, NO_CODE = Environment("", "", "", 0, None, {}), Code("none", False, "")
RIGHT = Verdict(True, "", 1, 1.0, 0.0, 0.0, 0)

Draw = Callable[[np.random.Generator, int], np.ndarray]
NOISES: dict[str, Draw] = {
    "log-normal": lambda rng, n: rng.normal(size=n),
    "log-normal, threefold": lambda rng, n: 3 * rng.normal(size=n),
    # Student's t with three degrees of freedom, scaled to a standard deviation of one.
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n) / np.sqrt(3),
    # Interference only ever slows down: one cell in twenty, by some multiple of the noise.
    "hiccups": lambda rng, n: rng.normal(size=n) + np.where(rng.random(n) < 0.05, 8 * rng.exponential(size=n), 0.0),
}


@dataclass(frozen=True)
class Calibration:
    """What the analysis said of many comparisons whose truth was a slow-down by `effect`.

    Shares of the comparisons, of what each was called; `wrong_sweeps` is the share of sweeps in which at least one
    was called faster or, where there was no effect, slower. `coverage` is the share of 95 % intervals that held the
    true speed-up, `rounds` how many were measured on average.
    """

    noise: str
    effect: float
    adaptive: bool
    sweeps: int
    comparisons: int
    same: float
    slower: float
    faster: float
    unresolved: float
    wrong_sweeps: float
    coverage: float
    rounds: float


def simulate(noise: str, effect: float, protocol: ProtocolConfig, sweeps: int, seed: int = 0) -> Calibration:
    """Simulate that many sweeps of one slow-down at 40 points; what they were found to be."""
    config, adaptive = _config(protocol), protocol.target_ci is not None
    rng = np.random.default_rng([seed, list(NOISES).index(noise), round(1e6 * effect), adaptive])
    drawn = (_sweep(replace(config, seed=sweep), NOISES[noise], effect, rng) for sweep in range(sweeps))
    return judge(noise, effect, adaptive, ([*compared(a, VARIANT)] for a in drawn))


def compared(analysis: Analysis, variant: str) -> Iterator[Row]:
    """The rows of a variant that have a speed-up."""
    return (row for row in analysis.primary if row.variant == variant and row.speedup is not None)


def judge(noise: str, effect: float, adaptive: bool, sweeps: Iterator[list[Row]]) -> Calibration:
    """Hold the rows of each sweep against the truth."""
    truth, rows, wrong = 1 / (1 + effect), [], []
    for found in sweeps:
        rows += found
        false = {Claim.FASTER} if effect else {Claim.FASTER, Claim.SLOWER}
        wrong.append(any(row.verdict in false for row in found))
    shares = {claim.value: fmean(row.verdict == claim for row in rows) for claim in Claim}
    covered = [(row.speedup_ci_low or 0.0) <= truth <= (row.speedup_ci_high or 0.0) for row in rows]
    return Calibration(
        noise,
        effect,
        adaptive,
        len(wrong),
        len(rows),
        **shares,
        wrong_sweeps=fmean(wrong),
        coverage=fmean(covered),
        rounds=fmean(row.n for row in rows),
    )


def _config(protocol: ProtocolConfig) -> ExperimentConfig:
    variants = [VariantConfig(name, name) for name in (BASELINE, VARIANT)]
    workloads = [WorkloadConfig("decode", "decode", *POINTS)]
    return ExperimentConfig("calibration", "", ["simulated"], variants, workloads, protocol)


def _sweep(config: ExperimentConfig, draw: Draw, effect: float, rng: np.random.Generator) -> Analysis:
    """One sweep, measured by drawing."""
    plan = make_plan(config, config.models)
    manifest = new_manifest(config, [], plan, NO_MACHINE, NO_CODE)
    step_ms = _step_ms(rng, draw, len(plan.cells), config.protocol.windows)
    settling, results, round_ = Settling(config, plan), [], 0
    for cell, samples in zip(plan.cells, step_ms, strict=True):
        if cell.round != round_:
            round_ = cell.round
            settling.look()
        if why_skip := settling.why_skip(cell):
            result = CellResult(cell, Status.SKIPPED, why_skip)
        else:
            slowed = samples * (1 + effect) if cell.variant == VARIANT else samples
            result = CellResult(cell, Status.OK, samples={"step_ms": slowed.tolist()}, verdict=RIGHT)
        settling.learn(result)
        results.append(result)
    return analyse(assemble(manifest, results))


def _step_ms(rng: np.random.Generator, draw: Draw, cells: int, windows: int) -> np.ndarray:
    """Samples of every cell in the order measured, [cells, windows]."""
    drift, steps = np.empty(cells), rng.normal(scale=DRIFT_STEP, size=cells)
    at = rng.normal(scale=DRIFT_STEP / np.sqrt(1 - DRIFT_MEMORY**2))
    for index, step in enumerate(steps):
        at = drift[index] = DRIFT_MEMORY * at + step
    noise = (drift + SCALE * draw(rng, cells))[:, None] + rng.normal(scale=WINDOW_SCALE, size=(cells, windows))
    return np.asarray(np.exp(noise))
