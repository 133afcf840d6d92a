"""One cell run for a profiler: warm first, then a short window in which its graphs are captured anew.

Layer and op ranges are pushed while a graph is captured; only a capture inside the window lets a reader join replayed
kernels to them. Nothing here is timed: a traced step is slower than an untraced one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from engine import Engine, Variant
from engine.ranges import detail, mirrored, span
from experiments.errors import UserError
from experiments.measuring.decode import SETTLE_STEPS, decode_engine, decoding, synchronize
from experiments.measuring.prefill import first_token_ms
from experiments.measuring.session import Session
from experiments.messages import Rung, Trace

Step = Callable[[], object]


def trace(session: Session, request: Trace) -> int:
    """Run the cell's steps inside the profiler's window; returns how many follow the one that captures."""
    point = request.cell.point
    kind = session.workloads[point.workload].kind
    if kind == "decode":
        contexts = session.contexts(point)
        steps = SETTLE_STEPS + 1 + request.steps
        engine = decode_engine(session, contexts, steps)
        with decoding(session, engine, point, [context - steps // 2 for context in contexts], steps):
            _run(engine, engine.step, request)
    elif kind == "prefill":
        engine = session.engine(point.batch, point.length + 1, point.batch * point.length)
        prompts = session.prompts(point, point.length)
        _run(engine, lambda: first_token_ms(engine, prompts), request)
    else:
        raise UserError(f"a cell of kind {kind} is not one step: trace a decode or a prefill cell")
    return request.steps


def rungs(variant: Variant) -> tuple[Rung, ...]:
    """The variant's fusions and what proves them; one without a switch is on."""
    return tuple(Rung(name, kernel, variant.switches.get(name, True)) for name, kernel in variant.kernels.items())


def _run(engine: Engine, step: Step, request: Trace) -> None:
    for _ in range(SETTLE_STEPS):
        step()
    synchronize(engine)
    if request.profiler == "ncu":
        return _run_counted(step, request)
    engine.runner.forget_graphs()
    with _window(request), span(f"cell/{request.cell.id}"), detail():
        step()
        synchronize(engine)
        with span("replay"):
            for _ in range(request.steps):
                step()
            synchronize(engine)


def _run_counted(step: Step, request: Trace) -> None:
    """Nothing but the steps inside the window, their graphs captured before: ncu runs every kernel many times."""
    with cuda_profiler_window():
        for _ in range(request.steps):
            step()
        torch.cuda.synchronize()


def _window(request: Trace) -> AbstractContextManager[None]:
    if request.profiler == "torch":
        return torch_profiler_window(request.path)
    return cuda_profiler_window()


@contextmanager
def cuda_profiler_window() -> Iterator[None]:
    """What `nsys profile --capture-range=cudaProfilerApi` and `ncu --profile-from-start=off` wait for."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.profiler.stop()


@contextmanager
def torch_profiler_window(path: str) -> Iterator[None]:
    """The PyTorch profiler around a block; its Chrome trace goes to `path`, with our ranges as user annotations."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler, mirrored(torch.profiler.record_function):
        yield
    profiler.export_chrome_trace(path)
