"""This engine's books, stepped as `engine.Engine` steps them: a step is launched before the last one is collected."""

from array import array
from collections.abc import Iterable, Sequence

from engine.block_manager import BlockManager
from engine.config import EngineConfig
from engine.request import SamplingParams, SequenceState
from engine.scheduler import Scheduled, Scheduler
from experiments.environment import package_version
from experiments.traffic.records import Limits, Request, Share, Step


class Ours:
    """`engine.scheduler` and `engine.block_manager` at their default block size."""

    def __init__(self, limits: Limits) -> None:
        self.version = package_version("fusebench") or ""
        self.block_size = EngineConfig.block_size
        self.num_blocks = limits.pool_tokens // self.block_size
        self._blocks = BlockManager(self.num_blocks, self.block_size)
        self._scheduler = Scheduler(self._blocks, limits.max_num_seqs, limits.max_num_batched_tokens)
        self._answers: dict[int, tuple[int, ...]] = {}
        self._in_flight: list[Scheduled] = []

    def add(self, request_id: int, request: Request) -> None:
        """Queue it."""
        sampling = SamplingParams(max_tokens=len(request.answer), ignore_eos=True)
        prompt = list(request.prompt)
        self._answers[request_id] = request.answer
        self._scheduler.add(SequenceState(request_id, array("q", prompt), len(prompt), sampling, frozenset(), seed=0))

    def step(self) -> Step:
        """Launch a step, collect the one before."""
        before = {sequence.request_id for sequence in self._scheduler.running}
        decodes, prefills = self._scheduler.schedule()
        preempted = before - {sequence.request_id for sequence in self._scheduler.running}
        launched = [*decodes, *prefills]
        for item in self._in_flight:
            if item.samples:
                self._collect(item)
        self._in_flight = launched
        shares = tuple(Share(item.sequence.request_id, item.start, item.length) for item in launched)
        return Step(shares, frozenset(preempted))

    def _collect(self, item: Scheduled) -> None:
        sequence = item.sequence
        sequence.num_in_flight -= 1
        if sequence.row >= 0:
            self._blocks.seal(sequence, item.start + item.length)
        answer = self._answers[sequence.request_id]
        num_answered = len(sequence.tokens) - sequence.num_prompt
        sequence.tokens.append(answer[num_answered])
        if num_answered + 1 == len(answer):
            self._scheduler.finish(sequence)

    @property
    def busy(self) -> bool:
        """Requests or a step in flight are left."""
        return not self._scheduler.idle or bool(self._in_flight)

    @property
    def used_blocks(self) -> int:
        """Blocks with a reference."""
        return self._blocks.num_used

    def holdings(self) -> Iterable[tuple[Sequence[int], int]]:
        """Of every running sequence."""
        return ((sequence.blocks, sequence.num_computed) for sequence in self._scheduler.running)
