"""Which tokens the next step computes: decodes first, then prefill chunks, under one token budget.

Running sequences always get their token before a newcomer gets its prompt, so arrivals cannot starve them. When the
pool is full the youngest running sequence is preempted: its blocks are taken back and it is computed again later.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from engine.block_manager import BlockManager
from engine.errors import RequestError
from engine.request import SequenceState


class Scheduled(NamedTuple):
    """One sequence's share of a step: tokens [start, start + length) of it are computed.

    `samples` says whether the last of them is the sequence's newest, so that a next token comes out.
    """

    sequence: SequenceState
    start: int
    length: int
    samples: bool


class Scheduler:
    """Continuous batching with chunked prefill, prefix reuse and preemption by recomputation."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self._free_rows = list(range(max_num_seqs))[::-1]
        self._refused: tuple[SequenceState | None, int] = (None, 0)
        self.num_preemptions = 0

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self.waiting and not self.running

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def adopt(self, sequence: SequenceState) -> None:
        """Run a sequence as if all but its last token had been computed; its pages hold whatever they hold."""
        context = len(sequence.tokens) - 1
        if not self._free_rows or not self.blocks.grow(sequence, context):
            raise RequestError(f"no room to adopt a sequence with {context} tokens of context")
        sequence.num_computed = context
        sequence.row = self._free_rows.pop()
        sequence.fed_back = True
        sequence.shareable = False
        self.running.append(sequence)

    def schedule(self) -> tuple[list[Scheduled], list[Scheduled]]:
        """(decodes, prefills) of the next step; their KV blocks are taken. Both empty: nothing can be launched now."""
        decodes: list[Scheduled] = []
        prefills: list[Scheduled] = []
        budget = self.max_num_batched_tokens
        preemptions = self.num_preemptions
        # Oldest first, and victims are the youngest: a sequence is never preempted after it was scheduled. But for
        # adopted ones only the youngest can be part-way through its prompt, so decodes come first.
        for sequence in list(self.running):
            if sequence.row < 0 or sequence.exhausted or budget == 0:
                continue
            length = min(sequence.num_tokens - sequence.num_computed, budget)
            if not self._make_room(sequence, sequence.num_computed + length):
                continue
            budget -= length
            (decodes if sequence.fed_back else prefills).append(self._take(sequence, length))
        while self.waiting and self._free_rows and budget > 0 and self.num_preemptions == preemptions:
            item = self._admit(self.waiting[0], budget)
            if item is None:
                break
            budget -= item.length
            prefills.append(item)
        return decodes, prefills

    def finish(self, sequence: SequenceState) -> None:
        """Forget a sequence and take everything back that it holds."""
        if sequence.row >= 0:
            self._stop_running(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.finished = True

    def take_back(self, items: Sequence[Scheduled]) -> None:
        """Queue sequences again whose step was not launched: nothing of it is computed."""
        for item in items:
            item.sequence.num_in_flight -= item.samples
        lost = {item.sequence for item in items}
        for sequence in self.running[::-1]:
            if sequence in lost:
                self._preempt(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError when a row or a block is lost, shared or leaked."""
        self.blocks.check_integrity(self.running)
        rows = [sequence.row for sequence in self.running]
        assert len(set(rows)) == len(rows), "two running sequences share a row"
        assert not set(rows) & set(self._free_rows), "a running sequence's row is on the free list"
        assert min(rows, default=0) >= 0, "a running sequence has no row"
        assert not any(sequence.blocks for sequence in self.waiting), "a waiting sequence holds blocks"

    def _take(self, sequence: SequenceState, length: int) -> Scheduled:
        start = sequence.num_computed
        sequence.num_computed += length
        samples = sequence.num_computed == sequence.num_tokens
        sequence.num_in_flight += samples
        sequence.fed_back = samples
        return Scheduled(sequence, start, length, samples)

    def _make_room(self, sequence: SequenceState, num_tokens: int) -> bool:
        while not self.blocks.grow(sequence, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, sequence: SequenceState, budget: int) -> Scheduled | None:
        # A preempted sequence's last token may still be on its way.
        if sequence.num_in_flight or not self._may_fit(sequence):
            return None
        cached = self.blocks.match_prefix(sequence)
        # Room for all of it, though a chunk may be all that is computed now: half a prompt only keeps others waiting.
        reusable_free = sum(self.blocks.blocks[block].refs == 0 for block in cached)
        missing = self.blocks.blocks_for(len(sequence.tokens)) - len(cached)
        if missing > self.blocks.num_free - reusable_free:
            self._refused = (sequence, self.blocks.num_free)
            return None
        self._refused = (None, 0)
        start = len(cached) * self.blocks.block_size
        length = min(len(sequence.tokens) - start, budget)
        self.waiting.popleft()
        self.blocks.admit(sequence, cached)
        self.blocks.grow(sequence, start + length)
        sequence.row = self._free_rows.pop()
        self.running.append(sequence)
        return self._take(sequence, length)

    def _may_fit(self, sequence: SequenceState) -> bool:
        """Whether looking for cached blocks, which reads the whole prompt, is worth it: not until more are free."""
        refused, num_free = self._refused
        return self.blocks.num_free > (num_free if refused is sequence else 0)

    def _preempt(self, sequence: SequenceState) -> None:
        self.num_preemptions += 1
        self._stop_running(sequence)
        self.waiting.appendleft(sequence)

    def _stop_running(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = -1
        self.blocks.release(sequence)
