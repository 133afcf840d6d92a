"""Time to first token: `batch` prompts of `length` tokens arrive at once, nothing cached; host wall clock.

It counts everything between the requests' arrival and their first tokens on the host: scheduling, upload, forward pass,
sampling, read-back. Prompts over the step's token budget are chunked, as in use. Those of a window are drawn before it
and come one behind the other: a host that did something else in between takes a few tenths of a millisecond longer,
presumably since its code is in no cache then. On a GPU, whose steps are launched without being waited for, the time
until the first one is launched has samples of its own (`ttft_launch_ms`).
"""

import time

from engine import Engine, SamplingParams
from experiments.config import ProtocolConfig
from experiments.measuring.decode import synchronize, window_steps
from experiments.measuring.guard import settle, undisturbed
from experiments.measuring.session import Session
from experiments.records import Point


def measure_prefill(session: Session, point: Point, protocol: ProtocolConfig) -> tuple[dict[str, list[float]], Engine]:
    """(samples, the engine that ran)."""
    engine = session.engine(point.batch, point.length + 1, point.batch * point.length)
    prompts = session.prompts(point, point.length)
    attempts = max(2, protocol.warmup_max_steps)
    settle(engine, lambda: first_token_ms(engine, prompts), attempts)
    repeats = window_steps(protocol, first_token_ms(engine, prompts))
    times_ms = []
    for window in range(protocol.windows):
        salts = range(1 + window * repeats, 1 + (window + 1) * repeats)
        drawn = [session.prompts(point, point.length, salt) for salt in salts]
        with undisturbed(engine):
            times_ms += [first_token_and_launch_ms(engine, prompts) for prompts in drawn]
    samples = {"ttft_ms": [ttft_ms for ttft_ms, _ in times_ms]}
    if engine.device.type == "cuda" and engine.config.overlap:
        samples["ttft_launch_ms"] = [launch_ms for _, launch_ms in times_ms]
    return samples, engine


def first_token_ms(engine: Engine, prompts: list[list[int]]) -> float:
    """Milliseconds until every prompt has its first token."""
    return first_token_and_launch_ms(engine, prompts)[0]


def first_token_and_launch_ms(engine: Engine, prompts: list[list[int]]) -> tuple[float, float]:
    """Milliseconds until every prompt has its first token, and until `Engine.step` first returned."""
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    synchronize(engine)
    start = time.perf_counter()
    ids = [engine.add_request(prompt, sampling) for prompt in prompts]
    num_finished = _num_finished(engine)
    launched = time.perf_counter()
    while num_finished < len(ids):
        num_finished += _num_finished(engine)
    end = time.perf_counter()
    return (end - start) * 1e3, (launched - start) * 1e3


def _num_finished(engine: Engine) -> int:
    """How many requests ended with one more step."""
    outputs = engine.step()
    for output in outputs:
        if output.error:
            raise RuntimeError(output.error)
    return sum(output.finished for output in outputs)
