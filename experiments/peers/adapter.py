"""What an adapter of another engine gives, and what it is given. All else is made of this, once for all peers.

`adapter_of(kind)` finds experiments/peers/<kind>.py, which has

    BLOCK_SIZE        tokens of a block of its cache
    missing(path)     what is not here and how to get it, or None
    import_early()    its packages, before there is anything to load
    load(request)     the engine, loaded and warm, as a `Peer`

A peer needs one verb, `generate`: a decode cell is the difference of two calls, a prefill cell a call for one token, an
offline cell one call with every request (cells.py).
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

from engine import ModelConfig
from experiments.config import RuntimeConfig


@dataclass(frozen=True)
class LoadPeer:
    """The engine to build: `folder` has config.json, safetensors and a tokenizer.

    It must hold `max_num_seqs` sequences, each of up to `max_model_len` tokens, and `kv_tokens` tokens in all: the
    largest cell fits in its cache at once. Of requests of unequal lengths at most `queued_tokens` come together. `path`
    is the engine's checkout, where it is no package.
    """

    folder: Path
    model: ModelConfig
    dtype: str
    device: str
    seed: int
    runtime: RuntimeConfig
    path: str
    max_model_len: int
    max_num_seqs: int
    kv_tokens: int
    queued_tokens: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache that `kv_tokens` take."""
        return self.kv_tokens * self.model.kv_bytes_per_token(4 if self.dtype == "float32" else 2)


class Peer(Protocol):
    """A loaded engine. `facts` say in words what it is and what it chose; `includes` what its times hold."""

    facts: dict[str, str]
    includes: str

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """Each prompt's greedy answer of exactly so many tokens, an end token or not, in the order asked; on return
        the tokens are on the host. Unsupported for what the engine cannot do.
        """

    def logits(self, tokens_T: Tensor) -> Tensor | None:
        """Teacher-forced logits [T, V] of one sequence; None from an engine that gives none."""

    def rest(self) -> None:
        """Called after each cell: nothing may run on while others are measured, what is loaded stays."""

    def counters(self) -> dict[str, float]:
        """What the engine counts or has fixed: blocks, limits, graphs."""


class Adapter(Protocol):
    """A module of this package."""

    BLOCK_SIZE: int

    def missing(self, path: str) -> str | None:
        """What has to be installed or named first, in one line; None where all is there."""

    def import_early(self) -> None:
        """Import its packages, if they are here, without touching a GPU."""

    def load(self, request: LoadPeer) -> Peer:
        """The engine of a folder."""


def adapter_of(kind: str) -> Adapter:
    """The adapter of one of experiments.config.PEERS."""
    return cast(Adapter, importlib.import_module(f"experiments.peers.{kind}"))
