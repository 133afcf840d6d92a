"""Put a traffic through an engine's books and count."""

from collections.abc import Iterable, Sequence

from experiments.traffic.records import Books, Request, Step, Usage
from experiments.traffic.requests import Traffic

# Looking into every block is slow; every eighth step shows the same averages.
LOOK_EVERY = 8
# No traffic of ours takes half as many; an engine that needs more is stuck.
MOST_STEPS = 20_000


class Counters:
    """What the steps so far came to."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._prompt_lengths = [len(request.prompt) for request in requests]
        self._last = [len(request.prompt) + len(request.answer) - 1 for request in requests]
        self._ends = [0] * len(requests)
        self._best_ends = [0] * len(requests)
        self._stalls: dict[int, int] = {}
        self.computed_tokens = self.reused_tokens = self.preemptions = self.stalled_steps = self.longest_stall = 0

    def count(self, step: Step) -> None:
        """One more step."""
        for request_id in step.preempted:
            self.preemptions += 1
            self._ends[request_id] = 0
        for share in step.shares:
            # Between what was computed last and this share lies what the cache had.
            self.reused_tokens += share.start - self._ends[share.request_id]
            self.computed_tokens += share.length
            end = self._ends[share.request_id] = share.start + share.length
            self._best_ends[share.request_id] = max(end, self._best_ends[share.request_id])
        if step.shares:
            self._count_stalls({share.request_id for share in step.shares})

    def _count_stalls(self, served: set[int]) -> None:
        for request_id in list(self._stalls):
            self._stalls[request_id] = 0 if request_id in served else self._stalls[request_id] + 1
            self.stalled_steps += request_id not in served
            self.longest_stall = max(self.longest_stall, self._stalls[request_id])
            if self._best_ends[request_id] >= self._last[request_id]:
                del self._stalls[request_id]
        for request_id in served:
            if self._prompt_lengths[request_id] <= self._best_ends[request_id] < self._last[request_id]:
                self._stalls.setdefault(request_id, 0)

    @property
    def answered(self) -> int:
        """Requests whose answers are complete: all but the last token's keys and values were computed."""
        return sum(best >= last for best, last in zip(self._best_ends, self._last, strict=True))


def drive(books: Books, engine: str, traffic: Traffic) -> Usage:
    """Serve all of a traffic; whatever the engine raises ends it and is the usage's reason."""
    counters = Counters(traffic.requests)
    used: list[float] = []
    wasted: list[float] = []
    reason, steps, clock, arrived = "", 0, 0, 0
    while (arrived < len(traffic.requests) or books.busy) and clock < MOST_STEPS:
        while arrived < len(traffic.requests) and traffic.requests[arrived].arrival <= clock:
            books.add(arrived, traffic.requests[arrived])
            arrived += 1
        clock += 1
        if not books.busy:
            continue
        try:
            step = books.step()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            break
        counters.count(step)
        if not step.shares:
            continue
        steps += 1
        used.append(books.used_blocks / books.num_blocks)
        if steps % LOOK_EVERY == 0:
            wasted.append(books.used_blocks / books.num_blocks - stored_share(books))
    if clock >= MOST_STEPS:
        reason = f"stuck: not finished after {MOST_STEPS} steps"
    return Usage(
        engine=engine,
        version=books.version,
        traffic=traffic.name,
        block_size=books.block_size,
        requests=len(traffic.requests),
        answered=counters.answered,
        steps=steps,
        needed_tokens=sum(len(request.prompt) + len(request.answer) - 1 for request in traffic.requests),
        computed_tokens=counters.computed_tokens,
        reused_tokens=counters.reused_tokens,
        preemptions=counters.preemptions,
        mean_used=_mean(used),
        peak_used=max(used, default=0.0),
        mean_waste=_mean(wasted),
        stalled_steps=counters.stalled_steps,
        longest_stall=counters.longest_stall,
        reason=reason,
    )


def stored_share(books: Books) -> float:
    """Share of the pool's slots that hold a token; a block that several requests share counts once."""
    fill: dict[int, int] = {}
    for blocks, tokens in books.holdings():
        for i, block in enumerate(blocks):
            filled = min(books.block_size, tokens - i * books.block_size)
            fill[block] = max(fill.get(block, 0), filled)
    return sum(filled for filled in fill.values() if filled > 0) / (books.num_blocks * books.block_size)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
