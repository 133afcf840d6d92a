"""Time of a decode step: `batch` sequences with `length` tokens of context, on average over the timed steps.

The context is not prefilled: pages are filled with seeded noise, since a step costs the same whatever they hold. Steps
run free, as in use: no synchronisation inside a window, one at its end. Two clocks: host wall time over a window
divided by its steps (`step_ms`), and CUDA events between neighbouring steps on the GPU's own timeline
(`step_device_ms`).
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine import Engine, SamplingParams
from experiments.config import ProtocolConfig
from experiments.measuring.guard import settle, undisturbed
from experiments.measuring.session import Session
from experiments.records import Point

SETTLE_STEPS = 3
STEADY = 0.05  # Two halves of a warm-up block agree to this share.


def measure_decode(session: Session, point: Point, protocol: ProtocolConfig) -> tuple[dict[str, list[float]], Engine]:
    """(samples, the engine that ran)."""
    warmup_steps = protocol.warmup_max_steps + protocol.warmup_min_steps + 2
    most_steps = SETTLE_STEPS + protocol.windows * protocol.steps_per_window
    engine = session.engine(point.batch, point.length + max(warmup_steps, most_steps) + 2, point.batch)
    fill_with_noise(engine, session.request.seed)
    with decoding(session, engine, point, point.length, warmup_steps):
        step_ms = _warm_up(engine, protocol)
    steps = max(1, min(protocol.steps_per_window, int(protocol.window_ms / max(step_ms, 1e-6))))
    timed_steps = protocol.windows * steps
    # Centred, so that the mean context of the timed steps is the cell's.
    context = point.length - SETTLE_STEPS - timed_steps // 2
    samples: dict[str, list[float]] = {"step_ms": []}
    with decoding(session, engine, point, context, SETTLE_STEPS + timed_steps):
        _run(engine, SETTLE_STEPS)
        for _ in range(protocol.windows):
            with undisturbed(engine):
                wall_ms, device_ms = _run(engine, steps)
            samples["step_ms"].append(wall_ms / steps)
            if device_ms:
                samples.setdefault("step_device_ms", []).extend(device_ms)
    return samples, engine


def fill_with_noise(engine: Engine, seed: int) -> None:
    """Every page gets values of the size that keys and values have."""
    engine.runner.fill_with_noise(seed)


@contextmanager
def decoding(session: Session, engine: Engine, point: Point, context: int, steps: int) -> Iterator[None]:
    """`point.batch` sequences decode for up to `steps` steps inside the block, from `context` tokens in the cache on.

    They start earlier where so many steps would end past the last position that the model or the pages have.
    """
    blocks_each = len(engine.blocks.blocks) // point.batch
    most_tokens = min(engine.config.max_model_len, blocks_each * engine.config.block_size)
    context = max(1, min(context, most_tokens - 1 - steps))
    sampling = SamplingParams(max_tokens=most_tokens - 1 - context, ignore_eos=True)
    for tokens in session.prompts(point, context + 1):
        engine.adopt(tokens, sampling)
    yield
    engine.abort_all()


def _warm_up(engine: Engine, protocol: ProtocolConfig) -> float:
    """Run until nothing compiles and two halves of a block agree; returns milliseconds per step.

    Rule: blocks of `warmup_min_steps`; stop when the two halves of a block differ by less than 5 %, or after
    `warmup_max_steps`.
    """
    half = max(1, protocol.warmup_min_steps // 2)
    ran = settle(engine, lambda: _run(engine, 1), protocol.warmup_max_steps)
    before_ms = _run(engine, half)[0] / half
    ran += half
    while True:
        after_ms = _run(engine, half)[0] / half
        ran += half
        if abs(after_ms - before_ms) <= STEADY * before_ms or ran + half > protocol.warmup_max_steps:
            return after_ms
        before_ms = after_ms


def _run(engine: Engine, steps: int) -> tuple[float, list[float]]:
    """(wall milliseconds, device milliseconds of each step but the first) of a free-running window."""
    cuda = engine.device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps if cuda else 0)]
    steps_before = engine.metrics.num_steps
    synchronize(engine)
    start = time.perf_counter()
    for step in range(steps):
        engine.step()
        if cuda:
            events[step].record()
    synchronize(engine)
    wall_ms = (time.perf_counter() - start) * 1e3
    launched = engine.metrics.num_steps - steps_before
    if launched != steps:
        raise RuntimeError(
            f"the sequences ended after {launched} of {steps} steps: the context leaves no room for more"
        )
    return wall_ms, [before.elapsed_time(after) for before, after in itertools.pairwise(events)]


def synchronize(engine: Engine) -> None:
    """Wait for the GPU, where there is one."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
