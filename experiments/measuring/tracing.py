"""One cell run for a profiler: warm first, then a window in which its graphs are captured anew.

A decode or a prefill cell is a few steps of one kind; an offline cell is a whole run.

Layer and op ranges are pushed while a graph is captured; only a capture inside the window lets a reader join replayed
kernels to them. Nothing here is timed: a traced step is slower than an untraced one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from engine import Engine, Variant
from engine.ranges import detail, mirrored, span
from experiments.errors import UserError
from experiments.measuring.decode import SETTLE_STEPS, decode_engine, decoding, run_window, synchronize
from experiments.measuring.offline import Requests, begin, prepare, run
from experiments.measuring.prefill import first_token_ms
from experiments.measuring.session import Session
from experiments.messages import Rung, Trace, Traced, TracedRun

Step = Callable[[], object]


def trace(session: Session, request: Trace) -> Traced:
    """Run the cell's steps inside the profiler's window; the answer counts those that follow the one that captures."""
    point = request.cell.point
    kind = session.workloads[point.workload].kind
    if kind == "decode":
        contexts = session.contexts(point)
        steps = SETTLE_STEPS + 1 + request.steps
        engine = decode_engine(session, contexts, steps)
        first = [context - steps // 2 for context in contexts]
        # All of them once before: a longer block table is another graph.
        with decoding(session, engine, point, first, steps):
            run_window(engine, steps)
        with decoding(session, engine, point, first, steps):
            _run(engine, engine.step, request)
    elif kind == "prefill":
        engine = session.engine(point.batch, point.length + 1, point.batch * point.length)
        prompts = session.prompts(point, point.length)
        _run(engine, lambda: first_token_ms(engine, prompts), request)
    elif kind == "offline" and request.profiler != "ncu":
        traced = _run_whole(*prepare(session, point), request)
        return Traced(request.cell, len(traced.decodes), rungs(session.variant), traced)
    else:
        raise UserError(
            f"a cell of kind {kind} cannot be traced by {request.profiler}: take a decode or a prefill cell"
        )
    return Traced(request.cell, request.steps, rungs(session.variant))


def rungs(variant: Variant) -> tuple[Rung, ...]:
    """The variant's fusions and what proves them; one without a switch is on."""
    return tuple(Rung(name, kernel, variant.switches.get(name, True)) for name, kernel in variant.kernels.items())


def _run(engine: Engine, step: Step, request: Trace) -> None:
    for _ in range(SETTLE_STEPS):
        step()
    synchronize(engine)
    if request.profiler == "ncu":
        return _run_counted(step, request)
    with _window(request), span(f"cell/{request.cell.id}"), detail():
        engine.runner.capture_anew()
        step()
        synchronize(engine)
        with span("replay"):
            for _ in range(request.steps):
                step()
            synchronize(engine)


def _run_whole(engine: Engine, requests: Requests, request: Trace) -> TracedRun:
    """A run, to see which graphs are needed; in the window these, a run's beginning (see offline.py), and a run."""
    run(engine, requests)
    with _window(request), span(f"cell/{request.cell.id}"), detail():
        engine.runner.capture_anew()
        begin(engine, requests)
        synchronize(engine)
        with span("replay"):
            traced = _followed(engine, requests)
            synchronize(engine)
    return traced


def _followed(engine: Engine, requests: Requests) -> TracedRun:
    """Serve all requests, and note what every step computed."""
    metrics, start = engine.metrics, time.perf_counter()
    first, decodes, prefill_tokens = metrics.num_steps, [], []
    for prompt, sampling in requests:
        engine.add_request(prompt, sampling)
    while engine.has_work:
        steps, decoded, prefilled = metrics.num_steps, metrics.num_decoded_tokens, metrics.num_prefilled_tokens
        engine.step()
        if metrics.num_steps > steps:
            decodes.append(metrics.num_decoded_tokens - decoded)
            prefill_tokens.append(metrics.num_prefilled_tokens - prefilled)
    run_ms = (time.perf_counter() - start) * 1e3
    output_tokens = sum(sampling.max_tokens for _, sampling in requests)
    return TracedRun(first, tuple(decodes), tuple(prefill_tokens), output_tokens, run_ms)


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
