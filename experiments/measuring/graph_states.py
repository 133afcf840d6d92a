"""What an engine has captured and run before, and what a decode step of it then takes.

python -m experiments.measuring.graph_states        qwen3-0.6b, baseline and fused, on a GPU if there is one

    model=NAME       a name under configs/model, its weights drawn (qwen3-0.6b)
    variants=[...]   one engine after another, in this process (baseline, fused)
    batches=[...]    sequences of the timed steps (8, 64, 128)
    context=N        tokens in the cache of each (512)
    requests=N       how many of the workload `offline` the engine holds (256)
    stages=[...]     what is done to the engine before steps are timed, in order (all of them)
    same_ops=BOOL    prompts run the operations of decode steps, where a variant has others for them (false)
    windows=N        of 25 steps each (3)
    out=FILE         where the figures go

Stages: `alone` has the graphs of the timed steps only, as the engine of a decode cell; `decodes` adds those of every
batch; `prompts` a run's prompts, in steps without a graph where they are as many as by default; `all` every graph that
greedy traffic can ask for; `anew` drops them and captures those of decode steps alone; `reversed` captures all of them
anew, the last first.

A step is timed twice: between CUDA events on the GPU, steps running free, and on the host, from `Engine.step` to its
return with an idle GPU before it.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from engine import Engine
from experiments.command_line import run_or_help
from experiments.compose import compose
from experiments.config import VariantConfig
from experiments.durable import insist_on_place, write_figures
from experiments.environment import machine, resolve_device
from experiments.errors import UserError
from experiments.kernel_records import Stamp, new_stamp
from experiments.measuring.decode import SETTLE_STEPS, decoding, run_window, synchronize
from experiments.measuring.offline import Requests, begin, prepare
from experiments.measuring.presence import others_on_gpu
from experiments.measuring.session import Session, free_memory
from experiments.options import choose, parse_options
from experiments.records import Point

WINDOW_STEPS = 25
# Of a window: settling, free and one by one.
STEPS = SETTLE_STEPS + 2 * WINDOW_STEPS


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    model: str = "qwen3-0.6b"
    variants: tuple[str, ...] = ("baseline", "fused")
    batches: tuple[int, ...] = (8, 64, 128)
    context: int = 512
    requests: int = 256
    stages: tuple[str, ...] = ()
    same_ops: bool = False
    windows: int = 3
    out: str = ""


@dataclass(frozen=True)
class Row:
    """Steps of one batch after one stage: a median of each window on the GPU (none without one), and on the host.

    `other_processes` were on the GPU besides; none is known of a CPU.
    """

    variant: str
    stage: str
    batch: int
    num_graphs: int
    device_us: list[float]
    host_us: list[float]
    other_processes: int | None


def _alone(engine: Engine, requests: Requests) -> None:
    engine.runner.forget_graphs()


def _decodes(engine: Engine, requests: Requests) -> None:
    engine.runner.warm_up(engine.runner.decode_sizes)


def _everything(engine: Engine, requests: Requests) -> None:
    engine.runner.warm_up_all()


def _anew(engine: Engine, requests: Requests) -> None:
    engine.runner.forget_graphs()
    _decodes(engine, requests)


def _reversed(engine: Engine, requests: Requests) -> None:
    _everything(engine, requests)
    keys = list(engine.runner.graphs.graphs)
    engine.runner.forget_graphs()
    for layout, tokens_only in reversed(keys):
        engine.runner.capture(layout, tokens_only)


STAGES: Mapping[str, Callable[[Engine, Requests], None]] = {
    "alone": _alone,
    "decodes": _decodes,
    "prompts": begin,
    "all": _everything,
    "anew": _anew,
    "reversed": _reversed,
}


def measure_states(session: Session, options: Options) -> Iterator[Row]:
    """Rows of an engine that holds `options.requests` of the workload `offline`, stage by stage."""
    engine, requests = prepare(session, session.request.points[0])
    _insist_on_room(engine, options)
    # As in a decode cell: zeros would cost less power than the keys and values that `prompts` leaves.
    engine.runner.fill_with_noise(session.request.seed)
    for stage in choose("stages", options.stages, tuple(STAGES)):
        STAGES[stage](engine, requests)
        for batch in options.batches:
            device_us, host_us = _steps_us(session, engine, batch, options)
            num_graphs, others = len(engine.runner.graphs.graphs), others_on_gpu(session.device)
            yield Row(session.variant.name, stage, batch, num_graphs, device_us, host_us, others)


def _insist_on_room(engine: Engine, options: Options) -> None:
    most, tokens = max(options.batches), options.context + 1 + STEPS
    pages, there = most * engine.blocks.blocks_for(tokens), engine.runner.num_blocks
    if tokens > engine.config.max_model_len or pages > there:
        raise UserError(
            f"graph_states: context={options.context}: {most} sequences of {tokens} tokens take {pages} pages, and the "
            f"engine of requests={options.requests} has {there} for sequences of {engine.config.max_model_len} tokens; "
            "choose a shorter context, fewer batches or more requests"
        )


def _steps_us(session: Session, engine: Engine, batch: int, options: Options) -> tuple[list[float], list[float]]:
    """(a step on the GPU, a step on the host) in microseconds, the median of each window."""
    point = Point(session.request.model, "decode", batch, options.context)
    contexts = [options.context] * batch
    device_us, host_us = [], []
    # The first window captures what is not there yet.
    for window in range(1 + options.windows):
        with decoding(session, engine, point, contexts, STEPS):
            run_window(engine, SETTLE_STEPS)
            _, device_ms = run_window(engine, WINDOW_STEPS)
            launches_us = [_host_us(engine) for _ in range(WINDOW_STEPS)]
        if window and device_ms:
            device_us.append(1e3 * median(device_ms))
        if window:
            host_us.append(median(launches_us))
    return device_us, host_us


def _host_us(engine: Engine) -> float:
    synchronize(engine)
    start = time.perf_counter()
    engine.step()
    return 1e6 * (time.perf_counter() - start)


def _session(variant: VariantConfig, options: Options) -> Session:
    point = Point(options.model, "offline", options.requests, 0)
    session = Session.alone(variant, point, ["workloads=[offline]", f"batches=[{options.requests}]"])
    if options.same_ops:
        session.variant = replace(session.variant, prompt_ops=None)
    return session


def _print(row: Row) -> None:
    device = f"{median(row.device_us):8.1f} us on the GPU" if row.device_us else "no GPU"
    print(
        f"{row.variant:12} {row.stage:9} {row.num_graphs:4} graphs  {row.batch:4} sequences: {device}, "
        f"{median(row.host_us):7.1f} us on the host",
        flush=True,
    )


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown, no number or of no use."""
    options = parse_options(Options, "graph_states", arguments)
    choose("stages", options.stages, tuple(STAGES))
    if not options.batches:
        raise UserError("graph_states: batches=[] leaves nothing to time")
    for key in ("context", "requests", "windows"):
        if getattr(options, key) < 1:
            raise UserError(f"graph_states: {key}={getattr(options, key)} must be at least 1")
    for batch in options.batches:
        if not 0 < batch <= options.requests:
            raise UserError(
                f"graph_states: batches={list(options.batches)}: the engine holds 1 to {options.requests} sequences; "
                "raise requests"
            )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: run(parse(arguments), arguments))


def run(options: Options, arguments: Sequence[str]) -> int:
    """Row after row, each printed and kept as soon as it is measured."""
    if options.out:
        insist_on_place(Path(options.out), "out")
    command = shlex.join(["python", "-m", "experiments.measuring.graph_states", *arguments])
    stamp, rows = new_stamp(command, resolve_device("auto", machine())), list[Row]()
    for variant in compose([f"variants=[{','.join(options.variants)}]"]).variants:
        # What the engine before this one held.
        free_memory(torch.device(stamp.device))
        for row in measure_states(_session(variant, options), options):
            rows.append(row)
            _print(row)
            if options.out:
                _write(Path(options.out), stamp, options, rows)
    return 0


def _write(path: Path, stamp: Stamp, options: Options, rows: Sequence[Row]) -> None:
    asked = {key: getattr(options, key) for key in ("model", "context", "requests", "same_ops")}
    write_figures(path, stamp.figures | asked | {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    sys.exit(main())
