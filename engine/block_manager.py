"""Who owns which page of the KV cache, and which pages can be shared.

A full block is known by its parent's content id and its own tokens, compared in full: no hash collision can hand out
wrong keys and values. Blocks are reference-counted; a block nobody refers to keeps its content on the free list, least
recently used first, until it is taken.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import SequenceState

ROOT = -1
Key = tuple[int, bytes]


@dataclass
class Block:
    """One page. Once full and shareable it has a `key` and a content id of its own.

    The key is its parent's content id and its tokens, as bytes.
    """

    refs: int = 0
    key: Key | None = None
    content_id: int = ROOT


class BlockManager:
    """Pages of `block_size` tokens, handed to sequences and taken back."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.blocks = [Block() for _ in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_key: dict[Key, int] = {}
        self._content_ids = itertools.count()
        self.num_hit_tokens = 0
        self.num_queried_tokens = 0
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence refers to."""
        return len(self.blocks) - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: SequenceState) -> list[int]:
        """Cached blocks for the start of a sequence; at least its last token is always left to compute."""
        found: list[int] = []
        parent = ROOT
        for i in range((len(sequence.tokens) - 1) // self.block_size):
            block = self._by_key.get(self._key(sequence, i, parent))
            if block is None:
                break
            found.append(block)
            parent = self.blocks[block].content_id
        return found

    def admit(self, sequence: SequenceState, cached: Sequence[int]) -> None:
        """Give a waiting sequence its cached blocks."""
        for block in cached:
            self._take(block)
        sequence.blocks = list(cached)
        sequence.num_computed = len(cached) * self.block_size
        sequence.num_sealed = len(cached)
        sequence.sealed_content_id = self.blocks[cached[-1]].content_id if cached else ROOT
        self.num_hit_tokens += sequence.num_computed
        self.num_queried_tokens += len(sequence.tokens)

    def grow(self, sequence: SequenceState, num_tokens: int) -> bool:
        """Let a sequence hold so many tokens; False, and nothing changed, where the pool is too full."""
        missing = self.blocks_for(num_tokens) - len(sequence.blocks)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = next(iter(self._free))
            self._forget(block)
            self._take(block)
            sequence.blocks.append(block)
        return True

    def seal(self, sequence: SequenceState, num_written: int) -> None:
        """Make full blocks shareable: those whose tokens are known and whose content has been computed."""
        if not (self.prefix_caching and sequence.shareable):
            return
        for i in range(sequence.num_sealed, min(num_written, len(sequence.tokens)) // self.block_size):
            key = self._key(sequence, i, sequence.sealed_content_id)
            # Another sequence may have sealed the same content first; ours then stays private.
            owner = self._by_key.setdefault(key, sequence.blocks[i])
            block = self.blocks[owner]
            if block.key is None:
                block.key, block.content_id = key, next(self._content_ids)
            sequence.sealed_content_id = block.content_id
            sequence.num_sealed = i + 1

    def release(self, sequence: SequenceState) -> None:
        """Take all of a sequence's blocks back; later blocks are evicted before earlier ones."""
        for index in reversed(sequence.blocks):
            block = self.blocks[index]
            block.refs -= 1
            if block.refs == 0:
                self._free[index] = None
        sequence.blocks = []
        sequence.num_computed = 0
        sequence.num_sealed = 0
        sequence.sealed_content_id = ROOT

    def check_integrity(self, running: Sequence[SequenceState]) -> None:
        """Raise AssertionError unless every block is free or referred to, exactly as often as counted."""
        refs = [0] * len(self.blocks)
        for sequence in running:
            assert len(set(sequence.blocks)) == len(sequence.blocks), (
                f"request {sequence.request_id} holds a block twice"
            )
            for index in sequence.blocks:
                refs[index] += 1
        for index, block in enumerate(self.blocks):
            assert block.refs == refs[index], f"block {index}: {block.refs} references counted, {refs[index]} held"
            assert (block.refs == 0) == (index in self._free), f"block {index}: free list and references disagree"
            assert block.key is None or self._by_key.get(block.key) == index, f"block {index}: stale cache key"

    def _key(self, sequence: SequenceState, i: int, parent: int) -> Key:
        return parent, sequence.tokens[i * self.block_size : (i + 1) * self.block_size].tobytes()

    def _take(self, index: int) -> None:
        block = self.blocks[index]
        if block.refs == 0:
            del self._free[index]
        block.refs += 1
        self.peak_used = max(self.peak_used, self.num_used)

    def _forget(self, index: int) -> None:
        block = self.blocks[index]
        if block.key is not None:
            del self._by_key[block.key]
            block.key, block.content_id = None, ROOT
