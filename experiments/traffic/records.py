"""What passes between the stages: requests, one step's work, and what a whole traffic came to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A prompt that arrives before step `arrival`, and the answer that it will get."""

    arrival: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """What every engine gets: tokens that its KV pool holds, sequences at once, tokens a step."""

    pool_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16_384


@dataclass(frozen=True)
class Share:
    """Tokens [start, start + length) of a request are computed in this step."""

    request_id: int
    start: int
    length: int


@dataclass(frozen=True)
class Step:
    """What one step computes, and whom it takes everything back from."""

    shares: tuple[Share, ...]
    preempted: frozenset[int]


class Books(Protocol):
    """An engine's scheduler and block manager, with the model left out. `version` is that of the engine's code."""

    version: str
    block_size: int
    num_blocks: int

    def add(self, request_id: int, request: Request) -> None:
        """A request arrives."""

    def step(self) -> Step:
        """Schedule a step and give each request that samples in it the next token of its answer."""

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""

    @property
    def used_blocks(self) -> int:
        """Blocks that some request refers to."""

    def holdings(self) -> Iterable[tuple[Sequence[int], int]]:
        """(block ids, tokens computed or being computed) of every request that holds blocks."""


@dataclass(frozen=True)
class Usage:
    """One engine under one traffic. `reason` says why where not every request was answered.

    Shares are of the pool, averaged over steps: `mean_used` and `peak_used` blocks referred to, `mean_waste` the slots
    in them that hold no token. `needed_tokens` is what a lone request must compute, summed; `computed_tokens` what was
    computed, `reused_tokens` what the prefix cache spared. `stalled_steps` counts, over requests that have begun their
    answer, the steps that worked for others only; `longest_stall` is the most of them in a row.
    """

    engine: str
    version: str
    traffic: str
    block_size: int
    requests: int
    answered: int
    steps: int
    needed_tokens: int
    computed_tokens: int
    reused_tokens: int
    preemptions: int
    mean_used: float
    peak_used: float
    mean_waste: float
    stalled_steps: int
    longest_stall: int
    reason: str = ""
