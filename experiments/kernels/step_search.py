"""The greedy search over a whole decode step: one kernel after another, a change kept where the step gains by it.

A tile's time alone does not tell what it gives in the step (docs/challenges.md): under programmatic dependent launch a
kernel's registers and shared memory decide what can run beside it. So each candidate is timed in the step, with all
that was kept before in place. The fastest of a site must beat the best step by more than equal steps differ, be right,
and do so once more beside it. Two passes, since what is best depends on the rest: the second tries neighbours of the
best. At the end the start and what came of it take turns.

Attention comes last. The table has no place for its cut, so what is kept of it is told and not written, and nothing
that is written was chosen beside it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Protocol

from experiments.errors import first_line
from experiments.kernels.candidates import Problem
from experiments.kernels.step_choices import (
    ATTENTION,
    Choice,
    attention_choices,
    first_choices,
    second_choices,
    trial_of,
)
from experiments.kernels.tuning import KernelPoint
from experiments.step_records import Kept, Tried
from variants.kernels.tile_table import GpuTable, Trial

# The same step, captured anew each time: the spread of these is noise, at least so much.
NOISE_REPEATS = 4
LEAST_NOISE = 0.001
CONFIRMING_ROUNDS = 8
# The most of the time that is left that a pass may compile for.
COMPILING_SHARE = 0.4


class Steps(Protocol):
    """Decode steps of one cell on a GPU, or what stands for them in a test."""

    points: Mapping[str, KernelPoint]
    # What the engine chooses by itself, by site; attention's is its cut in the last of the timed steps.
    own: Mapping[str, Choice]
    num_kv_heads: int
    max_context: int  # What the block table of the last timed steps holds; that of the first may hold less.
    sms: int
    hopper: bool  # Whether attention's kernel for Hopper supports the model here.

    def time_us(self, trial: Trial) -> list[float]:
        """Microseconds of a step, one for each window, its graph captured anew."""

    def compile(self, choices: Sequence[Choice], ends_at: float) -> set[Choice]:
        """Those that compiled and ran by then (time.monotonic)."""

    def why_wrong(self, choice: Choice) -> str:
        """What of its results is out of bounds; empty where nothing is."""

    def problem(self, point: KernelPoint) -> Problem:
        """What the tiles of a point have to solve here."""


class StepSearch:
    """The search at one cell until `ends_at`. `chosen` differs from the engine's own, by site; `attention` is apart."""

    def __init__(self, steps: Steps, batch: int, table: Mapping[str, GpuTable], ends_at: float) -> None:
        self._steps, self._batch, self._table, self._ends_at = steps, batch, table, ends_at
        self.chosen: dict[str, Choice] = {}
        self.attention: Choice | None = None
        self.tried: list[Tried] = []
        self.kept: list[Kept] = []
        self._able = set(steps.own.values())
        self._best_us = math.inf
        self.noise = self._know_noise()

    def run(self) -> None:
        """Both passes, then attention. RuntimeError where not even the engine as it is can be timed."""
        steps, points = self._steps, self._steps.points
        problems = {site: steps.problem(point) for site, point in points.items()}
        first = {site: first_choices(site, point, problems[site], self._table) for site, point in points.items()}
        cuts = attention_choices(self._batch, steps.num_kv_heads, steps.max_context, steps.sms, steps.hopper)
        # Starting workers takes as long as what they compile.
        self._compile([*chain(*first.values()), *cuts])
        took_us = {site: self._improve(site, choices) for site, choices in first.items()}
        second = {
            site: second_choices(point, problems[site], took_us[site], steps.own[site], self._now(site))
            for site, point in points.items()
        }
        self._compile([*chain(*second.values())])
        for site, choices in second.items():
            self._improve(site, choices)
        written = dict(self.chosen)
        self._improve(ATTENTION, cuts)
        self.attention, self.chosen = self.chosen.get(ATTENTION), written

    def confirm(self) -> dict[str, list[float]]:
        """Steps at the `start`, at the `end` with what was chosen, and with `attention`'s cut besides, in turns.

        Empty where nothing was chosen, or no cut.
        """
        end = list(self.chosen.values())
        contenders = {"start": [], "end": end, ATTENTION: [*end, self.attention] if self.attention else []}
        trials = [(name, trial_of(choices)) for name, choices in contenders.items() if choices or name == "start"]
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(CONFIRMING_ROUNDS):
            # There and back, so that drift favours none.
            for name, trial in trials if turn % 2 == 0 else reversed(trials):
                taken[name].append(median(self._steps.time_us(trial)))
        return taken

    def _know_noise(self) -> float:
        """By how much equal steps differ, as a share; and how long a measurement takes."""
        self._time([])
        begin = time.monotonic()
        same = [self._time([]) for _ in range(NOISE_REPEATS)]
        # Time that the end needs is none of the search's.
        self._ends_at -= 3 * CONFIRMING_ROUNDS * (time.monotonic() - begin) / NOISE_REPEATS
        return max(LEAST_NOISE, max(same) / min(same) - 1)

    def _compile(self, choices: Sequence[Choice]) -> None:
        """What is new of them."""
        now = time.monotonic()
        new = [choice for choice in dict.fromkeys(choices) if choice not in self._able]
        self._able |= self._steps.compile(new, now + COMPILING_SHARE * max(0.0, self._ends_at - now))

    def _improve(self, site: str, choices: Sequence[Choice]) -> dict[Choice, float]:
        """Time each that compiled, and keep the fastest that stands up to it; microseconds of each."""
        took_us: dict[Choice, float] = {}
        # Anew, since clocks drift.
        self._best_us = self._time(list(self.chosen.values()))
        for choice in (choice for choice in choices if choice in self._able):
            if time.monotonic() >= self._ends_at:
                break
            # What runs already would be timed for nothing, and kept by chance.
            if choice != self._now(site) and (step_us := self._try(choice)) is not None:
                took_us[choice] = step_us
        for choice in sorted(took_us, key=took_us.__getitem__):
            if took_us[choice] >= self._best_us * (1 - self.noise):
                break
            if reason := self._steps.why_wrong(choice):
                self.tried.append(Tried(site, choice.label, None, first_line(f"wrong: {reason}")))
                continue
            self._keep_if_again(choice)
            break
        return took_us

    def _keep_if_again(self, choice: Choice) -> None:
        before, after = self._time(list(self.chosen.values())), self._time(self._with(choice))
        if after < before * (1 - self.noise):
            self.kept.append(Kept(choice.site, choice.label, before, after))
            self._best_us = after
            self.chosen.pop(choice.site, None)
            if choice != self._steps.own[choice.site]:
                self.chosen[choice.site] = choice

    def _try(self, choice: Choice) -> float | None:
        try:
            step_us = self._time(self._with(choice))
        except Exception as error:
            # Registers, shared memory, the driver: each says so in its own way.
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.tried.append(Tried(choice.site, choice.label, None, reason))
            return None
        self.tried.append(Tried(choice.site, choice.label, step_us))
        return step_us

    def _now(self, site: str) -> Choice:
        return self.chosen.get(site, self._steps.own[site])

    def _with(self, choice: Choice) -> list[Choice]:
        return list({**self.chosen, choice.site: choice}.values())

    def _time(self, choices: Sequence[Choice]) -> float:
        return median(self._steps.time_us(trial_of(choices)))
