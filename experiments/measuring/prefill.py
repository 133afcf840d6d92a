"""Time to first token: `batch` prompts of `length` tokens arrive at once, nothing cached; host wall clock.

It counts everything between the requests' arrival and their first tokens on the host: scheduling, upload, forward pass,
sampling, read-back. Prompts over the step's token budget are chunked, as in use.
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
    samples = []
    for window in range(protocol.windows):
        for repeat in range(repeats):
            fresh = session.prompts(point, point.length, salt=1 + window * repeats + repeat)
            with undisturbed(engine):
                samples.append(first_token_ms(engine, fresh))
    return {"ttft_ms": samples}, engine


def first_token_ms(engine: Engine, prompts: list[list[int]]) -> float:
    """Milliseconds until every prompt has its first token."""
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    synchronize(engine)
    start = time.perf_counter()
    ids = [engine.add_request(prompt, sampling) for prompt in prompts]
    num_finished = 0
    while num_finished < len(ids):
        outputs = engine.step()
        for output in outputs:
            if output.error:
                raise RuntimeError(output.error)
        num_finished += sum(output.finished for output in outputs)
    return (time.perf_counter() - start) * 1e3
