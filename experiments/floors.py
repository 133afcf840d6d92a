"""The physical floor of a cell: the least bytes and FLOP that its answer needs, over ceilings measured in that run.

FORMULAS has them. A decode step reads weights and cache, and writes one token and its logits. In a prefill the LM head
sees the last token only, and causal attention is half a square; keys of a shared prefix are read once, and seen by all.
Offline is an ideal schedule, each step at its own floor.

It counts weights, biases too, cache, embeddings and logits; activations inside a step are assumed never to leave the
chip, so no engine reaches it exactly. A sliding window caps L, and the causal square, at its width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.config import WorkloadConfig
from experiments.lengths import request_lengths
from experiments.records import Point

FORMULAS = """layer  = h (q + 2k) D + q D h + 3 h f        W = e (l layer + norms + V h)        KV = 2 l k D e
decode   bytes = W + B L KV + B (KV + e h + e V)      FLOP = B (2 (l layer + V h) + 4 l q D L)
prefill  bytes = W + B T (KV + e h) + B e V           FLOP = B (2 T l layer + 2 l q D T^2 + 2 V h)
shared   as prefill, of the prompts' own T tokens; the P shared ones are read once: + P KV, T^2 is (P + T)^2 - P^2
serving  one decode step of one sequence with the shortest prompt: the least time between two tokens
offline  one prefill of all prompts, then decode steps that shrink as requests finish
floor  = max(bytes / read bandwidth, FLOP / bf16 rate)

h hidden, f intermediate, D head size, q and k query and KV heads, V vocabulary, l layers, e bytes per element,
B batch, L context, T prompt tokens"""

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Floor:
    """Least work of one cell and the least time it takes.

    `bound` says which ceiling binds: `bytes` or `flop`. `tokens` come out of that work (in a prefill: go into it).
    """

    bytes: float
    flop: float
    floor_ms: float
    bound: str
    tokens: int


@dataclass(frozen=True)
class Ceilings:
    """What this machine reached in this run: a read-only stream and a large bf16 GEMM."""

    read_bytes_per_s: float
    bf16_flop_per_s: float

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> "Ceilings | None":
        """From a manifest, or None where nothing (or nothing positive) was measured: then no floor is claimed."""
        try:
            read, flop = float((values or {})["read_bytes_per_s"]), float((values or {})["bf16_flop_per_s"])
        except (KeyError, TypeError, ValueError):
            return None
        return cls(read, flop) if 0 < read < float("inf") and 0 < flop < float("inf") else None

    def time_ms(self, bytes_: float, flop: float) -> float:
        """Least milliseconds to move the bytes and do the FLOP, overlapped perfectly."""
        return 1e3 * max(bytes_ / self.read_bytes_per_s, flop / self.bf16_flop_per_s)


@dataclass(frozen=True)
class Work:
    """Bytes moved and FLOP done."""

    bytes: float
    flop: float


class _Dims:
    """The sizes that the formulas name, from the fields of configs/model/*.yaml."""

    def __init__(self, model: Mapping[str, Any], dtype_bytes: int) -> None:
        self.e = dtype_bytes
        self.h, f = int(model["hidden_size"]), int(model["intermediate_size"])
        self.layers, self.vocab = int(model["num_layers"]), int(model["vocab_size"])
        heads, kv_heads, head_dim = int(model["num_heads"]), int(model["num_kv_heads"]), int(model["head_dim"])
        self.q_size, kv_size = heads * head_dim, kv_heads * head_dim
        self.linear = self.layers * (self.h * (self.q_size + 2 * kv_size) + self.q_size * self.h + 3 * self.h * f)
        small = 2 * self.h + (2 * head_dim if model.get("qk_norm") else 0)
        small += (self.q_size + 2 * kv_size) if model.get("qkv_bias") else 0
        small += self.h if model.get("o_bias") else 0
        small += 2 * f + self.h if model.get("mlp_bias") else 0
        self.weight_bytes = dtype_bytes * (self.linear + self.layers * small + self.h + self.vocab * self.h)
        self.kv_bytes = 2 * self.layers * kv_size * dtype_bytes
        self.window = int(model.get("sliding_window") or 0)

    def seen(self, length: int) -> int:
        """Tokens of context that attention reads."""
        return min(length, self.window) if self.window else length

    def causal_pairs(self, tokens: int) -> float:
        """Query-key pairs of a causal prefill, half a square (a band where the window is narrower)."""
        seen = self.seen(tokens)
        return seen * seen / 2 + (tokens - seen) * seen


def decode_work(model: Mapping[str, Any], contexts: Sequence[int], dtype_bytes: int) -> Work:
    """One decode step of len(contexts) sequences, each with that many tokens in its cache."""
    d = _Dims(model, dtype_bytes)
    return _decode_work(d, len(contexts), sum(map(d.seen, contexts)))


def _decode_work(d: _Dims, batch: int, cached_tokens: int) -> Work:
    moved = d.weight_bytes + cached_tokens * d.kv_bytes + batch * (d.kv_bytes + d.e * d.h + d.e * d.vocab)
    flop = batch * 2 * (d.linear + d.vocab * d.h) + 4 * d.layers * d.q_size * cached_tokens
    return Work(moved, flop)


def prefill_work(model: Mapping[str, Any], lengths: Sequence[int], dtype_bytes: int, shared: int = 0) -> Work:
    """One prefill of these prompts, up to the logits of each last token; their first `shared` tokens are cached."""
    d = _Dims(model, dtype_bytes)
    tokens, batch = sum(length - shared for length in lengths), len(lengths)
    moved = d.weight_bytes + d.seen(shared) * d.kv_bytes + tokens * (d.kv_bytes + d.e * d.h) + batch * d.e * d.vocab
    pairs = sum(d.causal_pairs(length) - d.causal_pairs(shared) for length in lengths)
    return Work(moved, 2 * tokens * d.linear + 4 * d.layers * d.q_size * pairs + batch * 2 * d.vocab * d.h)


def floor_of(
    sizes: Mapping[str, Any],
    workload: WorkloadConfig,
    point: Point,
    ceilings: Ceilings,
    dtype_bytes: int,
    seed: int = 0,
) -> Floor | None:
    """Floor of one point of a workload, for a model of these sizes; `seed` is the run's. None where workloads of this
    kind have no formula."""
    batch, length = point.batch, point.length
    match workload.kind:
        case "decode":
            contexts = workload.contexts(batch, length, seed)
            return _floor([decode_work(sizes, contexts, dtype_bytes)], ceilings, batch)
        case "prefill" | "shared_prefix":
            work = prefill_work(sizes, [length] * batch, dtype_bytes, workload.prefix_tokens)
            return _floor([work], ceilings, batch * (length - workload.prefix_tokens))
        case "serving":
            return _floor([decode_work(sizes, workload.input_tokens[:1], dtype_bytes)], ceilings, 1)
        case "offline":
            asked = request_lengths(batch, tuple(workload.input_tokens), tuple(workload.output_tokens))
            return _floor(offline_work(sizes, asked, dtype_bytes), ceilings, sum(output for _, output in asked))
    return None


def offline_work(model: Mapping[str, Any], requests: Sequence[tuple[int, int]], dtype_bytes: int) -> Iterable[Work]:
    """Work of each pass of the ideal schedule; a request is (prompt tokens, output tokens), the first from prefill."""
    yield prefill_work(model, [prompt for prompt, _ in requests], dtype_bytes)
    d = _Dims(model, dtype_bytes)
    for step in range(1, max((output for _, output in requests), default=0)):
        contexts = [prompt + step - 1 for prompt, output in requests if output > step]
        yield _decode_work(d, len(contexts), sum(map(d.seen, contexts)))


def _floor(passes: Iterable[Work], ceilings: Ceilings, tokens: int) -> Floor:
    moved = flop = time_ms = bytes_bound_ms = 0.0
    for work in passes:
        pass_ms = ceilings.time_ms(work.bytes, work.flop)
        moved, flop, time_ms = moved + work.bytes, flop + work.flop, time_ms + pass_ms
        if work.bytes / ceilings.read_bytes_per_s >= work.flop / ceilings.bf16_flop_per_s:
            bytes_bound_ms += pass_ms
    return Floor(moved, flop, time_ms, "bytes" if 2 * bytes_bound_ms >= time_ms else "flop", tokens)
