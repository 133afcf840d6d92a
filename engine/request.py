"""Requests as users make them and as the scheduler tracks them."""

import math
import operator
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, Literal

from engine.errors import RequestError

FinishReason = Literal["length", "stop", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep everything; `min_p` is relative to the most likely token.
    `repetition_penalty` over 1 makes tokens of the prompt and the answer so far less likely. `stop` holds token ids and
    strings; the text ends before a stop string. `seed` fixes the noise of one request, whatever batch it runs in.
    `logprobs` asks for the log-probability of that many likeliest tokens beside the chosen one (0: of the chosen one
    only), under the model itself: before penalty, temperature and cut-offs. A step in which anybody asks for more than
    the likeliest token computes logits, rounded to the model's dtype: where two are all but equal, a variant that takes
    its greedy tokens from unrounded ones may choose the other.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 64
    stop: tuple[str | int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stops: tuple[Any, ...] = tuple(self.stop) if several else (self.stop,)
        if not all(isinstance(stop, str) or hasattr(stop, "__index__") for stop in stops):
            raise RequestError(f"stop={self.stop!r} must hold strings and token ids")
        stops = tuple(stop if isinstance(stop, str) else operator.index(stop) for stop in stops)
        object.__setattr__(self, "stop", stops)
        for key in ("top_k", "max_tokens", "seed", "logprobs"):
            value = getattr(self, key)
            if value is None and key in ("seed", "logprobs"):
                continue
            if not (hasattr(value, "__index__") and -(2**63) <= value < 2**63):
                raise RequestError(f"{key}={value!r} must be a whole number of at most 64 bits")
        for key in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, key)
            if not (isinstance(value, Real) and math.isfinite(value)):
                raise RequestError(f"{key}={value!r} must be a finite number")
        checks = (
            (self.temperature >= 0, f"temperature={self.temperature} must be 0 (greedy) or more"),
            (self.top_k >= 0, f"top_k={self.top_k} must be 0 (off) or more"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p} must lie in [0, 1]"),
            (self.repetition_penalty > 0, f"repetition_penalty={self.repetition_penalty} must be above 0"),
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens} must be at least 1"),
            (self.logprobs is None or self.logprobs >= 0, f"logprobs={self.logprobs} must be 0 or more"),
            ("" not in self.stop, "stop holds an empty string, which would stop at once"),
        )
        for ok, message in checks:
            if not ok:
                raise RequestError(message)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @cached_property
    def needs_logits(self) -> bool:
        """Whether more is wanted of the logits than their argmax."""
        return not self.greedy or self.repetition_penalty != 1 or self.logprobs is not None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position: the chosen token's, and the likeliest tokens' as (id, logprob)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class RequestOutput:
    """What a request has produced. `error` says why it could not be served (`finish_reason` is then `error`).

    `prompt` is its own copy of the prompt's token ids, packed where they were valid.
    """

    request_id: int
    prompt: Sequence[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None

    @cached_property
    def prompt_token_ids(self) -> list[int]:
        """The prompt's token ids: made when asked for, since a long prompt's list delays its first token."""
        return list(self.prompt)

    @property
    def finished(self) -> bool:
        """Whether no further token will come."""
        return self.finish_reason is not None


@dataclass(eq=False)
class SequenceState:
    """A request inside the engine.

    `tokens` (of typecode q) are the prompt and every generated token known on the host: packed, so that a step's inputs
    and a page's key are copied and not gathered from objects. `num_in_flight` counts the tokens that launched
    steps will add to them: 0 or 1 between the engine's steps. `num_computed` tokens have their keys and values in the
    cache, or will once the launched steps are through. The first `num_sealed` of its `blocks`, the pages of the cache,
    are full, and what they hold is known to the prefix cache as `sealed_content_id`. `row` is the sequence's place in
    device-resident state, held while it runs; `fed_back` says that its next input token is the one sampled into that
    row. Pages of a sequence that is not `shareable` stay its own.
    """

    request_id: int
    tokens: "array[int]"
    num_prompt: int
    sampling: SamplingParams
    stop_token_ids: frozenset[int]
    seed: int
    num_computed: int = 0
    num_in_flight: int = 0
    blocks: list[int] = field(default_factory=list)
    num_sealed: int = 0
    sealed_content_id: int = -1
    row: int = -1
    fed_back: bool = False
    shareable: bool = True
    finished: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens that exist or are being computed."""
        return len(self.tokens) + self.num_in_flight

    @property
    def num_generated(self) -> int:
        """Generated tokens, the one in flight included."""
        return self.num_tokens - self.num_prompt

    @property
    def exhausted(self) -> bool:
        """Whether `max_tokens` are generated or in flight: nothing more to schedule."""
        return self.num_generated >= self.sampling.max_tokens


def as_tokens(prompt: Sequence[int]) -> "array[int]":
    """A checked copy of a token-id prompt, of typecode q."""
    try:
        # Of a bytes object an array would take the memory for its own.
        tokens = array("q", prompt if isinstance(prompt, list) else list(prompt))
    except (TypeError, OverflowError) as error:
        raise RequestError(f"a prompt is text or a list of token ids of at most 64 bits: {error}") from error
    if not tokens:
        raise RequestError("the prompt is empty: give at least one token")
    return tokens
