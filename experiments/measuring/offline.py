"""Throughput with everything queued at once: nano-vLLM's bench, output tokens per second over the whole run.

Prompt and answer lengths are nano-vLLM's own draws (seed 0, uniform); tokens are greedy, and none stops a request.

Before a graph is captured PyTorch gives all cached memory back to the driver, and the next step without a graph asks
for it anew. So every decode graph comes first, then the beginning of a run, up to its last prompt, whose steps leave
their memory in the cache, then the clock: after the last prompt a run only replays graphs. A run that met something new
all the same was another warm-up: the first that did not is the sample.
"""

import time
from functools import partial

from engine import Engine, EngineConfig, SamplingParams
from experiments.config import ProtocolConfig, WorkloadConfig
from experiments.lengths import draw_prompts
from experiments.measuring.guard import undisturbed_result
from experiments.measuring.session import MAX_BATCHED_TOKENS, Session
from experiments.records import Point

ATTEMPTS = 3

Requests = list[tuple[list[int], SamplingParams]]


def draw_requests(count: int, workload: WorkloadConfig, vocab_size: int, seed: int | str = 0) -> Requests:
    """Prompts and parameters of a workload's requests, their tokens folded into the vocabulary."""
    return [
        ([token % vocab_size for token in prompt], SamplingParams(max_tokens=answer, ignore_eos=True))
        for prompt, answer in draw_prompts(count, workload.input_tokens, workload.output_tokens, seed)
    ]


def measure_offline(session: Session, point: Point, _protocol: ProtocolConfig) -> tuple[dict[str, list[float]], Engine]:
    """(samples, the engine that ran): graphs, a run's beginning to warm its shapes up, a run to be timed."""
    engine, requests = prepare(session, point)
    engine.runner.warm_up(engine.runner.decode_sizes)
    begin(engine, requests)
    seconds, _ = undisturbed_result(engine, partial(run, engine, requests), ATTEMPTS)
    return {"output_tokens_per_s": [sum(sampling.max_tokens for _, sampling in requests) / seconds]}, engine


def prepare(session: Session, point: Point) -> tuple[Engine, Requests]:
    """An engine that holds all requests of the point, and these."""
    workload = session.workloads[point.workload]
    # Not the longest drawn: more requests must never take less memory, or an out-of-memory could not be inferred.
    longest = workload.longest(point.batch, point.length, session.request.seed)
    requests = draw_requests(point.batch, workload, session.loaded.config.vocab_size)
    # Room for what was drawn, not for as many of the longest: other engines' caches lie beside it.
    sizes = (len(prompt) + sampling.max_tokens for prompt, sampling in requests)
    blocks = sum(-(-size // EngineConfig.block_size) for size in sizes)
    return session.engine(point.batch, longest, MAX_BATCHED_TOKENS, num_kv_blocks=blocks), requests


def begin(engine: Engine, requests: Requests) -> None:
    """The steps of a run up to that with its last prompt; no request is left."""
    end = engine.metrics.num_prefilled_tokens + sum(len(prompt) for prompt, _ in requests)
    for prompt, sampling in requests:
        engine.add_request(prompt, sampling)
    while engine.has_work and engine.metrics.num_prefilled_tokens < end:
        engine.step()
    engine.abort_all()


def run(engine: Engine, requests: Requests) -> float:
    """Seconds to serve all requests."""
    start = time.perf_counter()
    outputs = engine.generate([prompt for prompt, _ in requests], [sampling for _, sampling in requests])
    seconds = time.perf_counter() - start
    wrong = next((o for o, (_, s) in zip(outputs, requests, strict=True) if len(o.token_ids) != s.max_tokens), None)
    if wrong is not None:
        raise RuntimeError(f"request {wrong.request_id} ended early: {wrong.error or wrong.finish_reason}")
    return seconds
