"""Pages: taken, shared, given back, found again; and the integrity check finds every way to lose one."""

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_manager import ROOT, BlockManager
from engine.request import SamplingParams, SequenceState

SIZE = 16


def sequence_of(tokens: list[int], request_id: int = 0) -> SequenceState:
    """A sequence that wants to hold these tokens."""
    return SequenceState(request_id, array("q", tokens), len(tokens), SamplingParams(), frozenset(), seed=0)


def hold(manager: BlockManager, tokens: list[int], request_id: int = 0) -> SequenceState:
    """A sequence whose tokens are all computed, in cached blocks where there are any."""
    sequence = sequence_of(tokens, request_id)
    manager.admit(sequence, manager.match_prefix(sequence))
    assert manager.grow(sequence, len(tokens))
    manager.seal(sequence, len(tokens))
    return sequence


def test_grow_takes_whole_blocks_as_they_are_needed() -> None:
    """33 tokens take three blocks of 16; the next 15 fit in the third."""
    manager = BlockManager(4, SIZE)
    sequence = sequence_of([1] * 48)
    for num_tokens, num_blocks in ((1, 1), (16, 1), (17, 2), (33, 3), (48, 3), (5, 3)):
        assert manager.grow(sequence, num_tokens)
        assert len(sequence.blocks) == num_blocks
    assert manager.num_used == manager.peak_used == 3
    manager.check_integrity([sequence])
    manager.release(sequence)
    assert manager.grow(sequence, 1)
    assert (manager.num_used, manager.peak_used) == (1, 3)


def test_a_full_pool_refuses_no_one_who_has_what_he_needs() -> None:
    """The last page is taken, and its holder fills it."""
    manager = BlockManager(1, SIZE)
    sequence = sequence_of([1] * SIZE)
    assert [manager.grow(sequence, num_tokens) for num_tokens in (1, 2, SIZE, SIZE + 1)] == [True, True, True, False]


def test_grow_beyond_the_pool_changes_nothing() -> None:
    """Two free blocks cannot become three, and none of them is taken on the way."""
    manager = BlockManager(3, SIZE)
    first, second = sequence_of([1]), sequence_of([2], 1)
    assert manager.grow(first, 1)
    assert not manager.grow(second, 3 * SIZE)
    assert second.blocks == []
    assert manager.num_free == 2
    manager.check_integrity([first, second])


def test_a_prefix_is_found_up_to_the_last_whole_block() -> None:
    """40 tokens leave two sealed blocks; a prompt that goes on elsewhere after 32 takes both."""
    manager = BlockManager(8, SIZE)
    tokens = list(range(40))
    first = hold(manager, tokens)
    second = hold(manager, [*tokens[:32], 99, 98], 1)
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert second.num_computed == 32
    assert (manager.num_hit_tokens, manager.num_queried_tokens) == (32, 74)
    manager.check_integrity([first, second])


def test_what_follows_a_cached_prefix_is_known_by_it_alone() -> None:
    """A prompt that goes on as it began: its third block has the first one's tokens, not its keys and values."""
    manager = BlockManager(8, SIZE)
    begun = list(range(32))
    first = hold(manager, [*begun, 99])
    second = hold(manager, [*begun, *range(50, 66), 99], 1)
    assert manager.match_prefix(sequence_of([*begun, *begun[:SIZE], 0])) == first.blocks[:2]
    assert manager.match_prefix(sequence_of([*begun, *range(50, 66), 0])) == second.blocks[:3]


def test_the_last_token_is_always_left_to_compute() -> None:
    """A prompt that is cached to its last token still needs one position's logits."""
    manager = BlockManager(8, SIZE)
    tokens = list(range(32))
    hold(manager, tokens)
    assert len(manager.match_prefix(sequence_of(tokens))) == 1
    assert len(manager.match_prefix(sequence_of([*tokens, 5]))) == 2


def test_equal_tokens_after_another_beginning_are_another_block() -> None:
    """Keys and values depend on everything before them, so a block is known by its parent too."""
    manager = BlockManager(8, SIZE)
    common = list(range(16))
    hold(manager, [7] * 16 + common)
    assert manager.match_prefix(sequence_of([8] * 16 + common + [0])) == []
    assert manager.match_prefix(sequence_of([*common, 0])) == []


def test_tokens_whose_hashes_collide_are_told_apart() -> None:
    """Python hashes 0 and 2**61 - 1 alike: a block found by its hash alone would be the wrong one."""
    manager = BlockManager(8, SIZE)
    zeros, collider = [0] * 17, [2**61 - 1] * 17
    assert hash(tuple(zeros)) == hash(tuple(collider))
    hold(manager, zeros)
    assert manager.match_prefix(sequence_of(collider)) == []


def test_nothing_is_shared_before_it_is_computed() -> None:
    """Blocks of a prompt in flight are not found; those of its first chunk are, once that is through."""
    manager = BlockManager(8, SIZE)
    tokens = list(range(48))
    sequence = sequence_of(tokens)
    assert manager.grow(sequence, 48)
    assert manager.match_prefix(sequence_of(tokens)) == []
    manager.seal(sequence, 20)
    assert manager.match_prefix(sequence_of(tokens)) == sequence.blocks[:1]


def test_a_block_is_shared_once_all_of_its_tokens_are_known() -> None:
    """The newest one may be on the device only when its keys and values are written; the next step knows it."""
    manager = BlockManager(8, SIZE)
    tokens = list(range(48))
    sequence = sequence_of(tokens[:47])
    assert manager.grow(sequence, 48)
    manager.seal(sequence, 48)
    assert manager.match_prefix(sequence_of([*tokens, 0])) == sequence.blocks[:2]
    sequence.tokens.append(tokens[47])
    manager.seal(sequence, 49)
    assert manager.match_prefix(sequence_of([*tokens, 0])) == sequence.blocks


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_the_longest_beginning_that_is_held_is_found(texts: list[list[int]], data: st.DataObject) -> None:
    """Of texts made of two blocks, which repeat themselves and each other; sealed in steps of any size."""
    manager = BlockManager(32, SIZE)
    holders = []
    for number, text in enumerate(texts):
        tokens = [token for block in text for token in [block] * SIZE]
        sequence = sequence_of(tokens, number)
        manager.admit(sequence, manager.match_prefix(sequence))
        assert manager.grow(sequence, len(tokens))
        for num_written in sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4))):
            manager.seal(sequence, num_written)
        manager.seal(sequence, len(tokens))
        holders.append((text, sequence))
    manager.check_integrity([sequence for _, sequence in holders])
    wanted = data.draw(st.lists(st.integers(0, 1), max_size=6))
    found = manager.match_prefix(sequence_of([token for block in wanted for token in [block] * SIZE] + [9]))
    held = {tuple(text[:length]) for text in texts for length in range(len(text) + 1)}
    assert len(found) == max(length for length in range(len(wanted) + 1) if tuple(wanted[:length]) in held)
    # Each block stands at its own place in some sequence that begins so.
    for place, block in enumerate(found):
        begun = [sequence.blocks for text, sequence in holders if text[: place + 1] == wanted[: place + 1]]
        assert block in [blocks[place] for blocks in begun]


def test_the_second_to_compute_a_block_keeps_it_to_itself() -> None:
    """Two sequences that computed the same prompt side by side: later ones share the first one's blocks."""
    manager = BlockManager(8, SIZE)
    tokens = list(range(33))
    first, second = sequence_of(tokens), sequence_of(tokens, 1)
    for sequence in (first, second):
        assert manager.grow(sequence, 33)
    for sequence in (first, second):
        manager.seal(sequence, 33)
    assert manager.match_prefix(sequence_of(tokens)) == first.blocks[:2]
    manager.release(first)
    # Unreferred, but not yet overwritten.
    assert len(manager.match_prefix(sequence_of(tokens))) == 2
    manager.check_integrity([second])


def test_a_shared_block_is_free_when_its_last_holder_is_gone() -> None:
    """References count the holders."""
    manager = BlockManager(4, SIZE)
    first = hold(manager, list(range(17)))
    second = hold(manager, list(range(17)), 1)
    shared = first.blocks[0]
    assert manager.blocks[shared].refs == 2
    manager.release(first)
    assert manager.blocks[shared].refs == 1
    manager.check_integrity([second])
    assert (second.num_computed, second.num_sealed) == (SIZE, 1)
    manager.release(second)
    assert (second.blocks, second.num_computed, second.num_sealed, second.sealed_content_id) == ([], 0, 0, ROOT)
    assert manager.num_used == 0
    manager.check_integrity([])


def test_the_least_recently_used_block_is_taken_first_and_forgotten() -> None:
    """Of two finished prompts the older one loses its blocks, the end of it first."""
    manager = BlockManager(4, SIZE)
    old, new = list(range(100, 133)), list(range(200, 217))
    for tokens in (old, new):
        manager.release(hold(manager, tokens))
    # Free, least recently used first: one never used, old's three from last to first, ... of new's two.
    taken = sequence_of([0] * 32, 2)
    assert manager.grow(taken, 32)
    assert len(manager.match_prefix(sequence_of(new))) == 1
    manager.check_integrity([taken])
    other = sequence_of([0] * 32, 3)
    assert manager.grow(other, 32)
    assert manager.match_prefix(sequence_of(new)) == []
    assert manager.match_prefix(sequence_of(old)) == []


def test_a_hit_makes_a_block_recently_used() -> None:
    """Blocks that a request has just used outlive those nobody asked for since."""
    manager = BlockManager(4, SIZE)
    first, second = list(range(100, 117)), list(range(200, 217))
    for tokens in (first, second, first):
        manager.release(hold(manager, tokens))
    assert manager.grow(sequence_of([0] * 48), 48)
    assert len(manager.match_prefix(sequence_of(first))) == 1
    assert manager.match_prefix(sequence_of(second)) == []


def test_without_prefix_caching_nothing_is_found() -> None:
    """The switch is off for benchmarks."""
    manager = BlockManager(4, SIZE, prefix_caching=False)
    hold(manager, list(range(40)))
    assert manager.match_prefix(sequence_of(list(range(40)))) == []


def test_pages_that_were_never_computed_are_not_shared() -> None:
    """An adopted sequence's pages hold whatever they hold."""
    manager = BlockManager(4, SIZE)
    sequence = sequence_of(list(range(40)))
    sequence.shareable = False
    assert manager.grow(sequence, 40)
    manager.seal(sequence, 40)
    assert manager.match_prefix(sequence_of(list(range(40)))) == []


def leak(manager: BlockManager, sequence: SequenceState) -> None:
    """A block that a sequence has dropped without giving it back."""
    sequence.blocks.pop()


def share_unasked(manager: BlockManager, sequence: SequenceState) -> None:
    """A block in another sequence's table that nobody counted."""
    sequence.blocks.append(manager.blocks.index(next(b for b in manager.blocks if b.refs == 0)))


def hold_twice(manager: BlockManager, sequence: SequenceState) -> None:
    """One page for two stretches of a sequence."""
    sequence.blocks[1] = sequence.blocks[0]


def free_in_use(manager: BlockManager, sequence: SequenceState) -> None:
    """A block in use on the free list."""
    manager._free[sequence.blocks[0]] = None


def forget_key(manager: BlockManager, sequence: SequenceState) -> None:
    """A block that believes it can be found."""
    manager._by_key.clear()


@pytest.mark.parametrize("damage", [leak, share_unasked, hold_twice, free_in_use, forget_key])
def test_integrity_check_finds(damage: Callable[[BlockManager, SequenceState], None]) -> None:
    """A check that nothing fails is no check."""
    manager = BlockManager(8, SIZE)
    sequence = hold(manager, list(range(40)))
    manager.check_integrity([sequence])
    damage(manager, sequence)
    with pytest.raises(AssertionError):
        manager.check_integrity([sequence])
