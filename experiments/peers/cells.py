"""A cell of a peer, out of calls of its `generate`: what the calls take on the host's clock, and nothing inside them.

    decode     t(prompts, answers of `long` tokens) - t(prompts, answers of `short` tokens), over long - short steps
    prefill    t(prompts, answers of one token)
    offline    output tokens / t(all requests at once)

A difference of two calls leaves out what both have: admission, prefill, the first steps. It has what a step has: the
scheduler, the forward pass, the sampler, the hop to the engine's process where it has one, and whatever the engine does
per token. Every call has prompts of its own, so that a prefix cache that cannot be switched off finds nothing.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from engine.compilations import Compilations, watch_triton
from experiments.config import ProtocolConfig
from experiments.errors import Unsupported
from experiments.measuring.decode import window_steps
from experiments.measuring.guard import Disturbed
from experiments.measuring.offline import draw_requests
from experiments.peers.lengths import decode_lengths
from experiments.peers.session import PeerSession
from experiments.records import Point, Sampled

T = TypeVar("T")
TRIES = 4
# A whole run would warm up the small batches of its end too; the engines make ready for those when they load.
WARM_UP_TOKENS = 8


def measure(session: PeerSession, point: Point, protocol: ProtocolConfig) -> Sampled:
    """(samples, counters) of a cell. Unsupported for a kind of cell that is not made of `generate`."""
    kind = session.workload(point).kind
    if kind not in MEASUREMENTS:
        raise Unsupported(f"a cell of kind {kind} is not measured through another engine's generate")
    watch_triton()
    samples, counters = MEASUREMENTS[kind](session, point, protocol)
    return samples, session.peer.counters() | counters


def measure_decode(session: PeerSession, point: Point, protocol: ProtocolConfig) -> Sampled:
    """Milliseconds per step: pairs of calls until there is one per window, or the windows' time is spent."""
    lengths = decode_lengths(point, protocol, session.config.max_position_embeddings)
    if lengths.most > session.config.max_position_embeddings:
        raise Unsupported(f"{lengths.most} tokens do not fit the model's positions; lower protocol.steps_per_window")

    def seconds(num_tokens: int) -> float:
        return call(session, session.fresh_prompts(point, lengths.prompt), [num_tokens] * point.batch)

    seconds(lengths.short)
    step_ms: list[float] = []
    start = time.perf_counter()
    while len(step_ms) < protocol.windows:
        short_s, long_s = quiet(lambda: (seconds(lengths.short), seconds(lengths.long)))
        if long_s <= short_s:
            raise RuntimeError(
                f"{lengths.steps} more steps took no longer than the calls vary; raise protocol.steps_per_window"
            )
        step_ms.append(1e3 * (long_s - short_s) / lengths.steps)
        if 1e3 * (time.perf_counter() - start) > protocol.windows * protocol.window_ms:
            break
    return {"step_ms": step_ms}, {"prompt_tokens": float(lengths.prompt), "timed_steps": float(lengths.steps)}


def measure_prefill(session: PeerSession, point: Point, protocol: ProtocolConfig) -> Sampled:
    """Milliseconds until every prompt has its first token, as often as our own cells repeat it."""

    def first_token_ms() -> float:
        return 1e3 * call(session, session.fresh_prompts(point, point.length), [1] * point.batch)

    first_token_ms()
    repeats = window_steps(protocol, quiet(first_token_ms))
    return {"ttft_ms": [quiet(first_token_ms) for _ in range(protocol.windows * repeats)]}, {}


def measure_offline(session: PeerSession, point: Point, _protocol: ProtocolConfig) -> Sampled:
    """Output tokens per second: a run's beginning to warm it up, a run to be timed."""
    vocab_size = session.config.vocab_size
    requests = draw_requests(point.batch, session.workload(point), vocab_size)
    num_tokens = [sampling.max_tokens for _, sampling in requests]

    def seconds(most: int) -> float:
        session.salt += 1
        # The lengths drawn, other tokens in each call.
        prompts = [[(token + session.salt) % vocab_size for token in prompt] for prompt, _ in requests]
        return call(session, prompts, [min(tokens, most) for tokens in num_tokens])

    seconds(WARM_UP_TOKENS)
    return {"output_tokens_per_s": [sum(num_tokens) / quiet(lambda: seconds(max(num_tokens)))]}, {}


MEASUREMENTS: dict[str, Callable[[PeerSession, Point, ProtocolConfig], Sampled]] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "offline": measure_offline,
}


def call(session: PeerSession, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> float:
    """Seconds of one call, once it is seen to have done all its work."""
    start = time.perf_counter()
    answers = session.peer.generate(prompts, num_tokens)
    seconds = time.perf_counter() - start
    lengths = [len(answer) for answer in answers]
    if lengths != list(num_tokens):
        wrong = [(asked, got) for asked, got in zip(num_tokens, lengths, strict=False) if asked != got]
        asked, got = wrong[0] if wrong else (len(num_tokens), len(lengths))
        raise RuntimeError(f"the engine gave {got} where {asked} were asked for")
    return seconds


def quiet(action: Callable[[], T]) -> T:
    """The result of an action in which this process compiled nothing; it is repeated until it does not."""
    for _ in range(TRIES):
        before = Compilations.now()
        result = action()
        if (after := Compilations.now()) == before:
            return result
    raise Disturbed(
        f"inside the timed region, {TRIES} times over: {after.triton - before.triton} triton compilations, "
        f"{after.dynamo - before.dynamo} dynamo compilations"
    )
