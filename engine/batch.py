"""What one forward pass reads: device tensors, which a CUDA graph can own, and numbers that it is captured with.

Shape suffixes: T tokens of the step, B sequences, H hidden size, J tiles of columns, D2 half the head dim, P blocks
that a sequence may hold or, of the rotary tables, positions.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.config import ModelConfig


@dataclass(frozen=True)
class Batch:
    """The tokens of one step: `num_decode` sequences with one token each, then prefill chunks.

    A padded row has slot -1 and context length 0. `cu_seqlens_B1` are the prefix sums of the prefill chunks' lengths,
    starting at 0 with the first prefill token (T index `num_decode`); None when all rows decode. `logit_rows` picks the
    T indices whose next token is wanted; None means all, in order.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    block_tables_BP: Tensor
    context_lens_B: Tensor
    num_decode: int
    cu_seqlens_B1: Tensor | None = None
    max_query_len: int = 1
    logit_rows: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


class LayerCache(NamedTuple):
    """One layer's pages, each [num_blocks, block_size, num_kv_heads, head_dim]."""

    k: Tensor
    v: Tensor


class Stream(NamedTuple):
    """The residual stream between two regions.

    The baseline keeps the last region's output apart (`delta_TH`) and adds it in the next norm, as nano-vLLM does; a
    variant that adds in the linear layer's epilogue passes `residual_TH=None`: `delta_TH` is then the whole
    stream, and per-tile sums of its squares may come with it.
    """

    delta_TH: Tensor
    residual_TH: Tensor | None
    square_sums_TJ: Tensor | None = None


class Context(NamedTuple):
    """What is the same for every layer of one forward pass."""

    config: ModelConfig
    batch: Batch
    cos_PD2: Tensor
    sin_PD2: Tensor
