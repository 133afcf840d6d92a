"""Time of a decode step: `batch` sequences with `length` tokens of context, on average over the steps of each window.

Every window begins anew and runs over the same contexts. Around a short one it has fewer steps, for none can come
before the first token; SETTLE_STEPS tokens or fewer are timed as SETTLE_STEPS + 1. In a ragged workload (`sigma` above
0) `length` is the mean over the sequences too, and their sum is exact.

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

from engine import Engine, EngineConfig, SamplingParams
from experiments.config import ProtocolConfig
from experiments.measuring.guard import settle, undisturbed
from experiments.measuring.session import Session
from experiments.records import Point

SETTLE_STEPS = 3
STEADY = 0.05  # Two halves of a warm-up block agree to this share.


def measure_decode(session: Session, point: Point, protocol: ProtocolConfig) -> tuple[dict[str, list[float]], Engine]:
    """(samples, the engine that ran)."""
    contexts = session.contexts(point)
    warmup_steps = protocol.warmup_max_steps + protocol.warmup_min_steps + 2
    most_steps = SETTLE_STEPS + protocol.steps_per_window
    engine = decode_engine(session, contexts, max(warmup_steps, most_steps))
    with decoding(session, engine, point, contexts, warmup_steps):
        step_ms = _warm_up(engine, protocol)
    steps = min(window_steps(protocol, step_ms), _most_centred(contexts))
    # Centred, so that the mean context of a window is the cell's, and each anew: of windows that run on from one
    # another the middle one would be the median whatever the others say, since a step grows with its context.
    first = -(steps // 2)
    # The last steps once before: a longer block table is another graph, which must not be captured while timed.
    with decoding(session, engine, point, _moved(contexts, first + steps - SETTLE_STEPS), SETTLE_STEPS):
        run_window(engine, SETTLE_STEPS)
    samples: dict[str, list[float]] = {"step_ms": []}
    for _ in range(protocol.windows):
        with decoding(session, engine, point, _moved(contexts, first - SETTLE_STEPS), SETTLE_STEPS + steps):
            run_window(engine, SETTLE_STEPS)
            with undisturbed(engine):
                wall_ms, device_ms = run_window(engine, steps)
        samples["step_ms"].append(wall_ms / steps)
        if device_ms:
            samples.setdefault("step_device_ms", []).extend(device_ms)
    return samples, engine


def window_steps(protocol: ProtocolConfig, step_ms: float) -> int:
    """How many steps of this length a window holds."""
    return max(1, min(protocol.steps_per_window, int(protocol.window_ms / max(step_ms, 1e-6))))


def _most_centred(contexts: list[int]) -> int:
    """The most steps around the shortest context that leave the settling steps before them a token."""
    return max(1, 2 * (min(contexts) - SETTLE_STEPS) - 1)


def _moved(contexts: list[int], by: int) -> list[int]:
    return [context + by for context in contexts]


def decode_engine(session: Session, contexts: list[int], steps: int) -> Engine:
    """An engine for sequences with these contexts and so many steps after them, its pages filled with noise."""
    tokens = [context + 1 + steps for context in contexts]
    # Room for their sum and a page broken by each: as much for ragged contexts as for equal ones.
    blocks = sum(tokens) // EngineConfig.block_size + len(tokens)
    engine = session.engine(len(contexts), max(tokens), len(contexts), num_kv_blocks=blocks)
    engine.runner.fill_with_noise(session.request.seed)
    return engine


@contextmanager
def decoding(session: Session, engine: Engine, point: Point, contexts: list[int], steps: int) -> Iterator[None]:
    """The point's sequences decode for `steps` steps inside the block, from `contexts` tokens in the cache on.

    One starts earlier where so many steps would end past the last position that the model has, later where its context
    would be empty.
    """
    sampling = SamplingParams(max_tokens=steps, ignore_eos=True)
    fitting = [max(1, min(context, engine.config.max_model_len - 1 - steps)) for context in contexts]
    for tokens, context in zip(session.prompts(point, max(fitting) + 1), fitting, strict=True):
        engine.adopt(tokens[: context + 1], sampling)
    yield
    engine.abort_all()


def _warm_up(engine: Engine, protocol: ProtocolConfig) -> float:
    """Run until nothing compiles and two halves of a block agree; returns milliseconds per step.

    Rule: blocks of `warmup_min_steps`; stop when the two halves of a block differ by less than 5 %, or after
    `warmup_max_steps`.
    """
    half = max(1, protocol.warmup_min_steps // 2)
    ran = settle(engine, lambda: run_window(engine, 1), protocol.warmup_max_steps)
    before_ms = run_window(engine, half)[0] / half
    ran += half
    while True:
        after_ms = run_window(engine, half)[0] / half
        ran += half
        if abs(after_ms - before_ms) <= STEADY * before_ms or ran + half > protocol.warmup_max_steps:
            return after_ms
        before_ms = after_ms


def run_window(engine: Engine, steps: int) -> tuple[float, list[float]]:
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
