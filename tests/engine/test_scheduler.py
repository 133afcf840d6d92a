"""What each step computes: decodes first, chunks under the budget, the youngest preempted, nobody starved."""

from array import array

import pytest

from engine.block_manager import BlockManager
from engine.errors import RequestError
from engine.request import SamplingParams, SequenceState
from engine.scheduler import Scheduled, Scheduler


def scheduler_of(num_blocks: int = 32, max_num_seqs: int = 4, budget: int = 64) -> Scheduler:
    """A scheduler over pages of 16 tokens."""
    return Scheduler(BlockManager(num_blocks, 16), max_num_seqs, budget)


def add(scheduler: Scheduler, request_id: int, num_prompt: int, max_tokens: int = 100) -> SequenceState:
    """Queue a request whose tokens are like nobody else's."""
    tokens = array("q", range(1000 * request_id, 1000 * request_id + num_prompt))
    sequence = SequenceState(request_id, tokens, num_prompt, SamplingParams(max_tokens=max_tokens), frozenset(), 0)
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> dict[int, tuple[int, int, bool]]:
    """Run one step to its end: (start, length, samples) by request."""
    decodes, prefills = scheduler.schedule()
    complete(scheduler, [*decodes, *prefills])
    scheduler.check_integrity()
    return {item.sequence.request_id: (item.start, item.length, item.samples) for item in [*decodes, *prefills]}


def complete(scheduler: Scheduler, items: list[Scheduled]) -> None:
    """What the engine does with a step's results."""
    for item in items:
        sequence = item.sequence
        if item.samples:
            sequence.num_in_flight -= 1
            if sequence.row >= 0:
                scheduler.blocks.seal(sequence, item.start + item.length)
            sequence.tokens.append(7)
            if len(sequence.tokens) - sequence.num_prompt == sequence.sampling.max_tokens:
                scheduler.finish(sequence)


def test_a_long_prompt_is_chunked_and_samples_at_its_end() -> None:
    """150 tokens under a budget of 64: 64, 64, 22; only the last chunk gives a token."""
    scheduler = scheduler_of()
    add(scheduler, 0, 150)
    assert step(scheduler) == {0: (0, 64, False)}
    assert step(scheduler) == {0: (64, 64, False)}
    assert step(scheduler) == {0: (128, 22, True)}
    assert step(scheduler) == {0: (150, 1, True)}


def test_prompts_fill_what_decodes_leave_of_the_budget() -> None:
    """Decodes and chunks share a step, decodes first."""
    scheduler = scheduler_of(budget=20)
    add(scheduler, 0, 5)
    assert step(scheduler) == {0: (0, 5, True)}
    add(scheduler, 1, 30)
    assert step(scheduler) == {0: (5, 1, True), 1: (0, 19, False)}
    add(scheduler, 2, 4)
    assert step(scheduler) == {0: (6, 1, True), 1: (19, 11, True), 2: (0, 4, True)}


def test_prompts_of_one_step_share_the_budget() -> None:
    """The second gets what the first one left, be it one token, and the third nothing."""
    for budget, left in ((20, 5), (16, 1)):
        scheduler = scheduler_of(budget=budget)
        for request_id in range(3):
            add(scheduler, request_id, 15)
        assert step(scheduler) == {0: (0, 15, True), 1: (0, left, False)}


def test_arrivals_do_not_starve_running_requests() -> None:
    """Whatever arrives, every running request gets its token in every step."""
    scheduler = scheduler_of(num_blocks=64, max_num_seqs=4, budget=16)
    add(scheduler, 0, 5)
    step(scheduler)
    for request_id in range(1, 12):
        add(scheduler, request_id, 40, max_tokens=3)
        assert step(scheduler)[0][1:] == (1, True)


def test_no_more_requests_run_than_there_are_rows() -> None:
    """The others wait, first come first served, and get rows as they come free."""
    scheduler = scheduler_of(max_num_seqs=2)
    for request_id in range(4):
        add(scheduler, request_id, 3, max_tokens=request_id + 1)
    assert set(step(scheduler)) == {0, 1}
    assert set(step(scheduler)) == {1, 2}
    assert [sequence.request_id for sequence in scheduler.waiting] == [3]


def test_the_youngest_is_preempted_and_computed_again() -> None:
    """Three blocks, two requests: when the older needs its second block, the younger gives up both of its own."""
    scheduler = scheduler_of(num_blocks=3)
    old, young = add(scheduler, 0, 15), add(scheduler, 1, 17)
    assert set(step(scheduler)) == {0, 1}
    assert step(scheduler) == {0: (15, 1, True), 1: (17, 1, True)}
    assert step(scheduler) == {0: (16, 1, True)}
    assert scheduler.num_preemptions == 1
    assert list(scheduler.waiting) == [young]
    assert young.row == -1
    assert young.blocks == []
    # Its first block is still cached, but only one other is free, and it holds 19 tokens: two blocks beside old's two.
    assert step(scheduler) == {0: (17, 1, True)}
    scheduler.finish(old)
    assert step(scheduler) == {1: (16, 3, True)}


def test_the_youngest_that_finds_no_room_gives_up_its_own() -> None:
    """Three blocks: both of the older one's are needed, and the younger one's second is not there."""
    scheduler = scheduler_of(num_blocks=3)
    add(scheduler, 0, 17)
    young = add(scheduler, 1, 16)
    assert set(step(scheduler)) == {0, 1}
    assert step(scheduler) == {0: (17, 1, True)}
    assert list(scheduler.waiting) == [young]
    assert young.blocks == []


def test_a_step_that_was_not_launched_is_computed_again() -> None:
    """Its sequences queue as they came, before others; one that had no part in it keeps running."""
    scheduler = scheduler_of(budget=16)
    first, second, third = (add(scheduler, request_id, 16, max_tokens=9) for request_id in range(3))
    assert set(step(scheduler)) == {0}
    scheduler.max_num_batched_tokens = 64
    decodes, prefills = scheduler.schedule()
    assert ([item.sequence for item in decodes], [item.sequence for item in prefills]) == ([first], [second, third])
    scheduler.take_back(prefills)
    scheduler.check_integrity()
    assert scheduler.running == [first]
    assert list(scheduler.waiting) == [second, third]
    complete(scheduler, decodes)
    assert step(scheduler) == {0: (17, 1, True), 1: (0, 16, True), 2: (0, 16, True)}


def test_a_prompt_is_not_begun_without_room_for_all_of_it() -> None:
    """Chunk by chunk it would fill the pool, be preempted by itself, and start over: 22 times in this case once."""
    scheduler = scheduler_of(num_blocks=12, budget=32)
    add(scheduler, 0, 90, max_tokens=60)
    for _ in range(4):
        step(scheduler)
    add(scheduler, 1, 128, max_tokens=3)
    computed = 0
    while not scheduler.idle:
        computed += sum(length for start, length, _ in step(scheduler).values() if start < 128 and length > 1)
    assert scheduler.num_preemptions == 0
    assert computed == 128


def test_a_waiting_prompt_is_looked_up_only_when_blocks_come_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for its prefix reads all of it: not in every step that it waits."""
    scheduler = scheduler_of(num_blocks=5)
    add(scheduler, 0, 17, max_tokens=40)
    looked: list[int] = []
    match = scheduler.blocks.match_prefix
    monkeypatch.setattr(
        scheduler.blocks, "match_prefix", lambda sequence: (looked.append(sequence.request_id), match(sequence))[1]
    )
    step(scheduler)
    add(scheduler, 1, 64, max_tokens=2)
    while not scheduler.idle:
        step(scheduler)
    assert looked == [0, 1, 1]


def test_a_prompt_that_waits_for_blocks_holds_nobody_up_once_it_is_gone() -> None:
    """What it was refused with says nothing of the next one, which fits."""
    scheduler = scheduler_of(num_blocks=5)
    add(scheduler, 0, 17)
    step(scheduler)
    long = add(scheduler, 1, 64)
    add(scheduler, 2, 3)
    assert set(step(scheduler)) == {0}
    scheduler.finish(long)
    assert set(step(scheduler)) == {0, 2}


def test_preempted_requests_keep_their_order() -> None:
    """Two victims of one step return to the head of the queue, the older first."""
    scheduler = scheduler_of(num_blocks=4)
    for request_id, length in enumerate((16, 16, 3, 3)):
        add(scheduler, request_id, length)
    assert set(step(scheduler)) == {0, 1, 2, 3}
    add(scheduler, 4, 3)
    assert set(step(scheduler)) == {0, 1}
    assert [sequence.request_id for sequence in scheduler.waiting] == [2, 3, 4]


def test_nothing_is_admitted_in_a_step_that_preempts() -> None:
    """The blocks just taken back are for the sequence that needed them."""
    scheduler = scheduler_of(num_blocks=2)
    add(scheduler, 0, 16)
    add(scheduler, 1, 3)
    assert set(step(scheduler)) == {0, 1}
    add(scheduler, 2, 3)
    assert set(step(scheduler)) == {0}
    assert [sequence.request_id for sequence in scheduler.waiting] == [1, 2]


def test_nothing_is_computed_past_max_tokens() -> None:
    """A request whose last token is in flight is not scheduled, and does not hold others up."""
    scheduler = scheduler_of()
    sequence = add(scheduler, 0, 5, max_tokens=1)
    decodes, prefills = scheduler.schedule()
    assert [item.sequence for item in prefills] == [sequence]
    assert decodes == []
    assert sequence.exhausted
    assert scheduler.schedule() == ([], [])
    complete(scheduler, prefills)
    assert scheduler.idle


def test_a_preempted_request_waits_for_its_token_in_flight() -> None:
    """Computed again before that token is known, it would compute it twice."""
    scheduler = scheduler_of()
    sequence = add(scheduler, 0, 5)
    _, items = scheduler.schedule()
    scheduler._preempt(sequence)
    assert scheduler.schedule() == ([], [])
    complete(scheduler, items)
    assert step(scheduler) == {0: (0, 6, True)}


def test_a_preempted_decode_comes_back_as_a_prompt() -> None:
    """Chunk by chunk, though it decoded before: what was sampled into the row it then had is no input now."""
    scheduler = scheduler_of(budget=2)
    sequence = add(scheduler, 0, 12)
    # Six chunks and seven decodes: 20 tokens, of which one page of 16 is kept.
    for _ in range(13):
        step(scheduler)
    scheduler._preempt(sequence)
    for fed_back, samples in ((False, False), (False, True), (True, True)):
        decodes, prefills = scheduler.schedule()
        assert [item.samples for item in (decodes if fed_back else prefills)] == [samples]
        assert not (prefills if fed_back else decodes)
        complete(scheduler, [*decodes, *prefills])


def test_cached_prefixes_are_not_computed_again() -> None:
    """A second request with the same 40 tokens starts at 32."""
    scheduler = scheduler_of()
    first = add(scheduler, 0, 40)
    step(scheduler)
    second = add(scheduler, 1, 40)
    second.tokens[:] = first.tokens[:40]
    assert step(scheduler)[1] == (32, 8, True)


def test_cached_blocks_need_no_room_of_their_own() -> None:
    """A pool of three blocks, two of them the prompt's own beginning: it needs only the third."""
    scheduler = scheduler_of(num_blocks=3)
    first = add(scheduler, 0, 40, max_tokens=1)
    step(scheduler)
    second = add(scheduler, 1, 40)
    second.tokens[:] = first.tokens[:40]
    assert step(scheduler) == {1: (32, 8, True)}


def test_what_an_adopted_sequence_holds_is_a_decode_s_and_nobody_else_s() -> None:
    """Its pages hold noise: a prompt of the same tokens is computed from its first on."""
    scheduler = scheduler_of()
    adopted = SequenceState(0, array("q", range(1000, 1040)), 40, SamplingParams(), frozenset(), 0)
    scheduler.adopt(adopted)
    decodes, prefills = scheduler.schedule()
    assert ([item.sequence for item in decodes], prefills) == ([adopted], [])
    complete(scheduler, decodes)
    add(scheduler, 1, 40)
    assert step(scheduler)[1] == (0, 40, True)


def test_an_adopted_sequence_decodes_at_once() -> None:
    """Its context counts as computed; without a row or room there is an error and nothing is taken."""
    scheduler = scheduler_of(num_blocks=3, max_num_seqs=2)
    first = SequenceState(0, array("q", range(33)), 33, SamplingParams(), frozenset(), 0)
    scheduler.adopt(first)
    assert step(scheduler) == {0: (32, 1, True)}
    too_long = SequenceState(1, array("q", range(33)), 33, SamplingParams(), frozenset(), 0)
    with pytest.raises(RequestError, match="no room to adopt"):
        scheduler.adopt(too_long)
    scheduler.check_integrity()
    assert scheduler.blocks.num_used == 3


@pytest.mark.parametrize("when", ["waiting", "running", "preempted", "in flight"])
def test_finish_takes_everything_back(when: str) -> None:
    """Wherever a request is when it ends."""
    scheduler = scheduler_of()
    sequence = add(scheduler, 0, 20)
    if when != "waiting":
        _, items = scheduler.schedule()
        if when != "in flight":
            complete(scheduler, items)
        if when == "preempted":
            scheduler._preempt(sequence)
    scheduler.finish(sequence)
    scheduler.check_integrity()
    assert scheduler.idle
    assert scheduler.blocks.num_used == 0
    assert sequence.finished


def test_integrity_check_finds_shared_and_lost_rows() -> None:
    """Two sequences in one row, a row both used and free, a running sequence without one; and a lost block."""
    for damage in ("shared", "free", "none", "block"):
        scheduler = scheduler_of()
        add(scheduler, 0, 3)
        add(scheduler, 1, 3)
        step(scheduler)
        first, second = scheduler.running
        if damage == "shared":
            second.row = first.row
        elif damage == "free":
            scheduler._free_rows.append(first.row)
        elif damage == "block":
            first.blocks.pop()
        else:
            first.row = -1
        with pytest.raises(AssertionError):
            scheduler.check_integrity()
