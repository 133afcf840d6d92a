"""What the driver counts, against books whose every step is written down here."""

from collections.abc import Iterable, Sequence

import pytest

from experiments.traffic.drive import drive, stored_share
from experiments.traffic.records import Limits, Request, Share, Step
from experiments.traffic.requests import Traffic


class Scripted:
    """Four blocks of 4 tokens; `held` is what is in them at every look."""

    version = ""
    block_size = 4
    num_blocks = 4

    def __init__(self, steps: Sequence[Step | Exception], held: Sequence[tuple[Sequence[int], int]] = ()) -> None:
        self._steps, self._held = list(steps), held
        self.arrived: list[int] = []

    def add(self, request_id: int, request: Request) -> None:
        self.arrived.append(request_id)

    def step(self) -> Step:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    @property
    def busy(self) -> bool:
        return bool(self.arrived and self._steps)

    @property
    def used_blocks(self) -> int:
        return len({block for blocks, _ in self._held for block in blocks})

    def holdings(self) -> Iterable[tuple[Sequence[int], int]]:
        return self._held


def traffic(*requests: Request) -> Traffic:
    return Traffic("scripted", "", requests, Limits(16))


def request(prompt: int, answer: int, arrival: int = 0) -> Request:
    return Request(arrival, tuple(range(prompt)), tuple(range(answer)))


def step(*shares: tuple[int, int, int], preempted: Iterable[int] = ()) -> Step:
    return Step(tuple(Share(*share) for share in shares), frozenset(preempted))


def test_a_lone_request_computes_what_it_needs() -> None:
    books = Scripted([step((0, 0, 5)), step((0, 5, 1)), step((0, 6, 1))])
    usage = drive(books, "scripted", traffic(request(5, 3)))
    assert (usage.answered, usage.steps, usage.needed_tokens, usage.computed_tokens) == (1, 3, 7, 7)
    assert (usage.reused_tokens, usage.preemptions, usage.stalled_steps, usage.longest_stall) == (0, 0, 0, 0)


def test_what_the_cache_had_is_reused_and_what_was_taken_back_is_computed_again() -> None:
    books = Scripted(
        [
            step((0, 4, 4)),  # Four of eight prompt tokens were in the cache.
            step((0, 8, 1)),
            step(preempted=[0]),
            step((0, 4, 6)),  # The same four again; the rest is computed a second time.
            step((0, 10, 1)),
        ]
    )
    usage = drive(books, "scripted", traffic(request(8, 4)))
    assert usage.steps == 4  # A step without work is none.
    assert usage.computed_tokens == 4 + 1 + 6 + 1
    assert usage.reused_tokens == 8
    assert usage.preemptions == 1
    assert usage.needed_tokens == 11
    assert usage.answered == 1


def test_steps_that_work_for_others_only_are_stalls_of_those_who_have_begun() -> None:
    books = Scripted(
        [
            step((0, 0, 2)),  # The first token of request 0 comes out.
            step((1, 0, 2)),  # Request 1 is prefilled, 0 waits,
            step((1, 2, 2)),  # and waits,
            step((0, 2, 1), (1, 4, 1)),  # and has its second token, which is request 1's last but one.
            step((0, 3, 1)),
            step((1, 5, 1)),  # 0 is complete now and stalls no more; 1 stalled for one step.
        ]
    )
    usage = drive(books, "scripted", traffic(request(2, 3), request(4, 3)))
    assert usage.answered == 2
    assert usage.stalled_steps == 2 + 1
    assert usage.longest_stall == 2


def test_requests_arrive_when_their_step_has_come() -> None:
    books = Scripted([step((0, 0, 1)) for _ in range(3)])
    drive(books, "scripted", traffic(request(1, 1), request(1, 1, arrival=2)))
    assert books.arrived == [0, 1]
    late = Scripted([step((0, 0, 1)), RuntimeError("before the second request")])
    usage = drive(late, "scripted", traffic(request(1, 1), request(1, 1, arrival=2)))
    assert late.arrived == [0]
    assert usage.answered == 1


def test_an_engine_that_dies_is_a_row_with_its_reason() -> None:
    books = Scripted([step((0, 0, 2)), AssertionError("scheduled_seqs"), step((0, 2, 1))])
    usage = drive(books, "scripted", traffic(request(2, 3)))
    assert usage.answered == 0
    assert usage.reason == "AssertionError: scheduled_seqs"


def test_shared_blocks_count_once_and_empty_slots_are_waste() -> None:
    held = [([0, 1], 6), ([0, 2], 5), ([3], 0)]  # Blocks 0 full, 1 half, 2 a quarter, 3 empty.
    assert stored_share(Scripted([], held)) == pytest.approx((4 + 2 + 1) / 16)
    usage = drive(Scripted([step((0, 0, 1))] * 8, held), "scripted", traffic(request(1, 1)))
    assert usage.mean_used == usage.peak_used == 1.0
    assert usage.mean_waste == pytest.approx(9 / 16)
