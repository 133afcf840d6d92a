"""Time to first token of prompts that begin alike: `batch` of them, `length` tokens each, of which the first
`prefix_tokens` are in the cache.

One prompt with a new prefix comes first and alone, and pays for it (`cold_ttft_ms`); the others then arrive at once
(`warm_ttft_ms`). Only whole pages are shared: a prefix is computed again from its last page border on. How much was
shared is the counter `prefix_hit_rate`, over the prompt tokens of both.
"""

import itertools
from dataclasses import replace

from engine import Engine
from experiments.config import ProtocolConfig
from experiments.measuring.decode import window_steps
from experiments.measuring.guard import settle, undisturbed
from experiments.measuring.prefill import first_token_ms
from experiments.measuring.session import Session
from experiments.records import Point


def measure_shared_prefix(
    session: Session, point: Point, protocol: ProtocolConfig
) -> tuple[dict[str, list[float]], Engine]:
    """(samples, the engine that ran)."""
    step_tokens = point.batch * point.length
    engine = session.engine(point.batch + 1, point.length + 1, step_tokens, enable_prefix_caching=True)
    salts = itertools.count()

    def draw() -> tuple[list[int], list[list[int]]]:
        return draw_alike(session, point, next(salts))

    def first_tokens_ms(cold: list[int], warm: list[list[int]]) -> tuple[float, float]:
        return first_token_ms(engine, [cold]), first_token_ms(engine, warm)

    settle(engine, lambda: first_tokens_ms(*draw()), max(2, protocol.warmup_max_steps))
    repeats = window_steps(protocol, sum(first_tokens_ms(*draw())))
    times_ms = []
    for _ in range(protocol.windows):
        drawn = [draw() for _ in range(repeats)]
        with undisturbed(engine):
            times_ms += [first_tokens_ms(*prompts) for prompts in drawn]
    cold_ms, warm_ms = zip(*times_ms, strict=True)
    return {"warm_ttft_ms": list(warm_ms), "cold_ttft_ms": list(cold_ms)}, engine


def draw_alike(session: Session, point: Point, salt: int) -> tuple[list[int], list[list[int]]]:
    """(the prompt that comes first, those that come after it): one prefix that no other salt has, then their own."""
    num_shared = session.workloads[point.workload].prefix_tokens
    first, *others = session.prompts(replace(point, batch=point.batch + 1), point.length, salt)
    return first, [first[:num_shared] + other[num_shared:] for other in others]
