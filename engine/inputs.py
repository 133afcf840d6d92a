"""The host side of a step's inputs: one packed int32 buffer, one copy to the device.

Every step, graph or eager, reads the same device buffer; a `Layout` says where its fields lie. Steps run in stream
order, so the next upload cannot overtake a step that still reads.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch
from engine.scheduler import Scheduled

Buffer = TypeVar("Buffer", np.ndarray, Tensor)
# Elements: a pointer's alignment to 16 bytes is part of what Triton compiles for, and must not depend on the step.
ALIGNMENT = 4
INACTIVE = -(2**30)  # Position of a padded decode row: stays negative however often it is advanced.


class Layout(NamedTuple):
    """Where the fields of a step with `num_tokens` tokens and `num_seqs` sequences lie in the packed buffer.

    The first `num_decode` sequences decode one token each. Decode-only steps keep `rows`, `positions` and `tables` on
    the device between steps; `tokens`, `slots` and `context_lens` are then computed there.
    """

    num_tokens: int
    num_seqs: int
    num_decode: int
    table_width: int

    @property
    def kind(self) -> Literal["decode", "prefill", "mixed"]:
        """What its sequences do."""
        if self.decode_only:
            return "decode"
        return "mixed" if self.num_decode else "prefill"

    @property
    def decode_only(self) -> bool:
        """Whether every sequence decodes."""
        return self.num_decode == self.num_seqs

    def fields(self, buffer: Buffer) -> dict[str, Buffer]:
        """Views of a packed buffer by name."""
        t, b = self.num_tokens, self.num_seqs
        sizes = {"rows": b, "positions": t, "tables": b * self.table_width}
        if not self.decode_only:
            sizes |= {
                "tokens": t,
                "slots": t,
                "context_lens": b,
                "cu_seqlens": b - self.num_decode + 1,
                "logit_rows": b,
            }
        views, start = {}, 0
        for name, size in sizes.items():
            views[name] = buffer[start : start + size]
            start += -(-size // ALIGNMENT) * ALIGNMENT
        views["tables"] = views["tables"].reshape(b, self.table_width)
        views["all"] = buffer[:start]
        return views


def packed_size(num_tokens: int, num_seqs: int, table_width: int) -> int:
    """Elements that the largest layout of an engine takes: eight fields, each padded to its alignment."""
    return 3 * num_tokens + num_seqs * (table_width + 4) + 1 + 8 * (ALIGNMENT - 1)


def longest_first(decodes: Sequence[Scheduled]) -> list[Scheduled]:
    """Decodes by falling context, older ones first among equals.

    A GPU starts the blocks of a grid in the order of their rows: a long context that starts late ends alone. All
    contexts grow together, so the order is the same from step to step until a request comes or goes.
    """
    return sorted(decodes, key=attrgetter("start"), reverse=True)


def fill_decode(buffer: np.ndarray, layout: Layout, decodes: Sequence[Scheduled], dummy_row: int) -> np.ndarray:
    """Pack a decode-only step; returns the part to copy. Positions are stored one back: the step advances them."""
    fields = layout.fields(buffer)
    n = len(decodes)
    fields["rows"][n:] = dummy_row
    fields["rows"][:n] = [item.sequence.row for item in decodes]
    fields["positions"][n:] = INACTIVE
    fields["positions"][:n] = [item.start - 1 for item in decodes]
    _fill_tables(fields["tables"], decodes)
    return fields["all"]


def fill_prompts(
    buffer: np.ndarray,
    layout: Layout,
    decodes: Sequence[Scheduled],
    prefills: Sequence[Scheduled],
    block_size: int,
    dummy_row: int,
) -> np.ndarray:
    """Pack decodes and prefill chunks, each padded to the layout; returns the part to copy.

    `rows` and `logit_rows` list the sampling sequences only, first ones first; the rest is padding. A padded decode row
    takes its token from whatever row stands there: it has no context and stores nothing.
    """
    fields = layout.fields(buffer)
    fields["all"].fill(0)
    fields["slots"].fill(-1)
    fields["rows"].fill(dummy_row)
    _fill_tables(fields["tables"], decodes)
    _fill_tables(fields["tables"][layout.num_decode :], prefills)
    n = len(decodes)
    starts = np.array([item.start for item in decodes], dtype=np.int32)
    fields["positions"][:n], fields["context_lens"][:n] = starts, starts + 1
    fields["slots"][:n] = _slots(fields["tables"], np.arange(n), starts, block_size)
    # A decode row's token is on the device; its host copy may not exist yet.
    fields["rows"][:n] = [item.sequence.row for item in decodes]
    fields["logit_rows"][:n] = np.arange(n)
    num_sampling, at = n, layout.num_decode
    for i, item in enumerate(prefills, start=layout.num_decode):
        end = at + item.length
        positions = np.arange(item.start, item.start + item.length, dtype=np.int32)
        fields["positions"][at:end] = positions
        fields["slots"][at:end] = _slots(fields["tables"], i, positions, block_size)
        fields["tokens"][at:end] = item.sequence.tokens[item.start : item.start + item.length]
        fields["cu_seqlens"][i - layout.num_decode + 1 :] = end - layout.num_decode
        fields["context_lens"][i] = item.start + item.length
        if item.samples:
            fields["logit_rows"][num_sampling] = end - 1
            fields["rows"][num_sampling] = item.sequence.row
            num_sampling += 1
        at = end
    return fields["all"]


def _slots(tables: np.ndarray, rows: "np.ndarray | int", positions: np.ndarray, block_size: int) -> np.ndarray:
    """Where the keys and values of tokens at these positions of these rows go."""
    slots: np.ndarray = tables[rows, positions // block_size] * block_size + positions % block_size
    return slots


def _fill_tables(tables: np.ndarray, items: Sequence[Scheduled]) -> None:
    for i, item in enumerate(items):
        blocks = item.sequence.blocks
        tables[i, : len(blocks)] = blocks


def prompt_batch(buffer: Tensor, layout: Layout, num_logit_rows: int, max_query_len: int) -> Batch:
    """The forward pass's view of an uploaded step with prompts."""
    fields = layout.fields(buffer)
    return Batch(
        fields["tokens"],
        fields["positions"],
        fields["slots"],
        fields["tables"],
        fields["context_lens"],
        layout.num_decode,
        fields["cu_seqlens"],
        max_query_len,
        fields["logit_rows"][:num_logit_rows],
    )


class Staging:
    """Pinned host buffers for uploads, used in turn and never before the last copy out of them has ended."""

    def __init__(self, size: int, device: torch.device, depth: int = 3) -> None:
        self._cuda = device.type == "cuda"
        self._buffers = [torch.zeros(size, dtype=torch.int32, pin_memory=self._cuda) for _ in range(depth)]
        self._copied = [torch.cuda.Event() for _ in range(depth)] if self._cuda else []
        self._turn = 0
        self.device_buffer = torch.zeros(size, dtype=torch.int32, device=device)

    def next(self) -> np.ndarray:
        """A host buffer free to be written."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._cuda:
            self._copied[self._turn].synchronize()
        buffer: np.ndarray = self._buffers[self._turn].numpy()
        return buffer

    def upload(self, size: int) -> None:
        """Copy the first `size` elements of the buffer last handed out."""
        self.device_buffer[:size].copy_(self._buffers[self._turn][:size], non_blocking=True)
        if self._cuda:
            self._copied[self._turn].record()
