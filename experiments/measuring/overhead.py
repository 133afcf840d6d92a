"""What the harness costs inside a timed region, measured by leaving it out.

python -m experiments.measuring.overhead                     steps that do nothing: the bare cost of the loop
python -m experiments.measuring.overhead model=qwen3-0.6b    decode steps at batch 1, on a GPU if there is one

    model=NAME    a name under configs/model, its weights drawn
    pairs=N       pairs of windows (40)
    steps=N       steps of a window (64)
    out=FILE      where the figures go

The timed loop of `decode` (a call, a CUDA event per step, the check of how many steps ran) and a loop of nothing but
steps run the same steps from the same context in turn, each first as often as the other. A pair's ratio is what the
harness adds. The guard and the readings of the GPU lie outside the clock; they are given per window.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch

from engine import Engine
from experiments.command_line import run_or_help
from experiments.compose import compose
from experiments.config import VariantConfig
from experiments.durable import insist_on_place, write_figures
from experiments.environment import code, machine
from experiments.errors import UserError
from experiments.measuring.decode import decode_engine, decoding, run_window, synchronize
from experiments.measuring.guard import undisturbed
from experiments.measuring.session import Session
from experiments.measuring.telemetry import Evidence
from experiments.options import parse_options
from experiments.records import Point
from experiments.stats import Estimate, estimate

SETTLE = 8
CONTEXT = 128
VARIANTS = ("baseline", "fused")


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    model: str = ""
    pairs: int = 40
    steps: int = 64
    out: str = ""


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
    """Microseconds of a step in each bare and each timed window, in pairs, and of the guard around each pair."""

    bare_us: Sequence[float]
    timed_us: Sequence[float]
    guard_us: Sequence[float]

    @property
    def ratio(self) -> Estimate:
        """A timed step over a bare one, with its 95 % interval over the pairs."""
        return estimate([timed / bare for timed, bare in zip(self.timed_us, self.bare_us, strict=True)])

    @property
    def added_us(self) -> float:
        """What a step takes more."""
        return median(timed - bare for timed, bare in zip(self.timed_us, self.bare_us, strict=True))


Begin = Callable[[], AbstractContextManager[None]]
"""Inside it the engine has a window's steps to run, always the same."""


def measure_overhead(
    engine: Engine | IdleEngine, steps: int = Options.steps, pairs: int = Options.pairs, begin: Begin = nullcontext
) -> Overhead:
    """Bare and timed windows of an engine in turn."""
    engine = cast(Engine, engine)
    bare, timed, guard = [], [], []

    def run_bare() -> None:
        with begin():
            bare.append(1e3 * _bare_ms(engine, steps) / steps)

    def run_timed() -> None:
        with begin():
            timed.append(1e3 * run_window(engine, steps)[0] / steps)

    with Evidence(engine.device):
        for pair in range(pairs):
            for run in (run_timed, run_bare) if pair % 2 else (run_bare, run_timed):
                run()
            guard.append(1e3 * _elapsed_ms(lambda: _guarded(engine)))
    return Overhead(bare, timed, guard)


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


def decode_overhead(model: str, variant: VariantConfig, steps: int, pairs: int) -> Overhead:
    """Of the steps that a variant decodes for one sequence, on a GPU if there is one."""
    point = Point(model, "decode", 1, CONTEXT)
    session = Session.alone(variant, point, ["workloads=[decode]", "batches=[1]", f"lengths=[{CONTEXT}]"])
    engine = decode_engine(session, [CONTEXT], SETTLE + steps)

    @contextmanager
    def begin() -> Iterator[None]:
        with decoding(session, engine, point, [CONTEXT], SETTLE + steps):
            run_window(engine, SETTLE)
            yield

    # The first window captures.
    with begin():
        run_window(engine, steps)
    return measure_overhead(engine, steps, pairs, begin)


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown, no number or of no use."""
    options = parse_options(Options, "overhead", arguments)
    if options.out and not options.model:
        raise UserError(f"overhead: out={options.out} is for the figures of a model: add model=NAME")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: _main(parse(arguments)))


def _main(options: Options) -> int:
    if not options.model:
        _print("nothing", measure_overhead(IdleEngine(), options.steps, options.pairs))
        return 0
    if options.out:
        insist_on_place(Path(options.out), "out")
    rows = []
    for variant in compose([f"variants=[{','.join(VARIANTS)}]"]).variants:
        found = decode_overhead(options.model, variant, options.steps, options.pairs)
        _print(f"{options.model}, {variant.name}", found)
        rows.append(_row(variant.name, found))
    if options.out:
        _write(Path(options.out), options, rows)
    return 0


def _print(what: str, found: Overhead) -> None:
    ratio = found.ratio
    low, high = ((100 * (end - 1) if end is not None else float("nan")) for end in (ratio.low, ratio.high))
    print(
        f"{what}: a step takes {median(found.bare_us):.3f} us bare and {median(found.timed_us):.3f} us timed, "
        f"{found.added_us:+.3f} us, {100 * (ratio.value - 1):+.3f} % [{low:+.3f} to {high:+.3f}] over {ratio.n} pairs; "
        f"outside the clock {median(found.guard_us):.0f} us per window",
        flush=True,
    )


def _row(variant: str, found: Overhead) -> dict[str, object]:
    ratio = found.ratio
    return {
        "variant": variant,
        "bare_us": median(found.bare_us),
        "timed_us": median(found.timed_us),
        "added_us": found.added_us,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "guard_us": median(found.guard_us),
        "pairs": [[*pair] for pair in zip(found.bare_us, found.timed_us, strict=True)],
    }


def _write(path: Path, options: Options, rows: Sequence[dict[str, object]]) -> None:
    made_of, gpu = code(), machine().gpu
    record = {
        "model": options.model,
        "context": CONTEXT,
        "steps": options.steps,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": made_of.commit,
        "dirty": made_of.dirty,
        "gpu": gpu.name if gpu else "",
        "rows": rows,
    }
    write_figures(path, record)


if __name__ == "__main__":
    sys.exit(main())
