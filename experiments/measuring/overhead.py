"""What the harness costs inside a timed region, measured by leaving it out.

python -m experiments.measuring.overhead               steps that do nothing: the bare cost of the loop
python -m experiments.measuring.overhead qwen3-0.6b    decode steps of the baseline at batch 1, on a GPU if there is one

Windows of the timed loop of `decode` (a call, a CUDA event per step, the check of how many steps ran) alternate with
windows of nothing but steps; the guard and the readings of the GPU lie outside the clock, and are given per window.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch

from engine import Engine, EngineConfig, SamplingParams
from experiments.measuring.decode import run_window, synchronize
from experiments.measuring.guard import undisturbed
from experiments.measuring.telemetry import Evidence

WINDOWS, STEPS, SETTLE = 20, 64, 8
CONTEXT = 128


@dataclass
class IdleEngine:
    """As much of an engine as the timed loop touches; its steps do nothing but count."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    metrics: Any = field(default_factory=lambda: SimpleNamespace(num_steps=0))
    runner: Any = field(default_factory=lambda: SimpleNamespace(graphs=SimpleNamespace(num_captures=0)))

    def step(self) -> None:
        """Nothing."""
        self.metrics.num_steps += 1


@dataclass(frozen=True)
class Overhead:
    """Medians over windows: microseconds of a bare and of a timed step, and of the guard around a window."""

    bare_us: float
    timed_us: float
    guard_us: float

    @property
    def share(self) -> float:
        """What of a timed step is the harness's."""
        return (self.timed_us - self.bare_us) / self.timed_us


def measure_overhead(engine: Engine | IdleEngine, steps: int = STEPS, windows: int = WINDOWS) -> Overhead:
    """Alternate bare and timed windows of an engine that has as many steps to run."""
    engine = cast(Engine, engine)
    bare, timed, guard = [], [], []
    with Evidence(engine.device):
        for window in range(windows):
            # Each goes first as often as the other: a context grows with every step, and its steps with it.
            if window % 2:
                timed.append(run_window(engine, steps)[0])
            bare.append(_bare_ms(engine, steps))
            if not window % 2:
                timed.append(run_window(engine, steps)[0])
            guard.append(_elapsed_ms(lambda: _guarded(engine)))
    return Overhead(1e3 * median(bare) / steps, 1e3 * median(timed) / steps, 1e3 * median(guard))


def _bare_ms(engine: Engine, steps: int) -> float:
    synchronize(engine)

    def run() -> None:
        for _ in range(steps):
            engine.step()
        synchronize(engine)

    return _elapsed_ms(run)


def _guarded(engine: Engine) -> None:
    with undisturbed(engine):
        pass


def _elapsed_ms(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def decoding_engine(model: str, steps: int) -> Engine:
    """The baseline with one sequence of CONTEXT tokens that decodes for so many steps."""
    cuda = torch.cuda.is_available()
    length = CONTEXT + SETTLE + steps + 1
    settings: dict[str, Any] = (
        {"device": "cuda", "dtype": "bfloat16"} if cuda else {"device": "cpu", "dtype": "float32"}
    )
    engine = Engine(EngineConfig(model=model, max_model_len=length, max_num_seqs=1, **settings))
    engine.add_request([1] * CONTEXT, SamplingParams(max_tokens=SETTLE + steps, ignore_eos=True))
    for _ in range(SETTLE):
        engine.step()
    return engine


def main() -> int:
    """Print the figures."""
    engine = decoding_engine(sys.argv[1], 2 * WINDOWS * STEPS) if len(sys.argv) > 1 else IdleEngine()
    found = measure_overhead(engine)
    model, added_us = " ".join(sys.argv[1:]) or "no engine", found.timed_us - found.bare_us
    print(
        f"{model} on {engine.device}: a step takes {found.bare_us:.3f} us bare and {found.timed_us:.3f} us timed, "
        f"{added_us:+.3f} us ({100 * found.share:+.2f} %); outside the clock {found.guard_us:.0f} us per window"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
