"""Nothing may be compiled, tuned, captured or allocated from the driver while the clock runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from engine import Engine
from engine.compilations import Compilations
from experiments.measuring.telemetry import timed_window

T = TypeVar("T")


@dataclass(frozen=True)
class Disturbances:
    """Counts of what must not happen inside a timed region."""

    triton_compilations: int
    dynamo_compilations: int
    graph_captures: int
    driver_allocations: int

    @classmethod
    def now(cls, engine: Engine) -> "Disturbances":
        """The running totals."""
        allocations = torch.cuda.memory_stats()["num_device_alloc"] if engine.device.type == "cuda" else 0
        compiled = Compilations.now()
        return cls(compiled.triton, compiled.dynamo, engine.runner.graphs.num_captures, allocations)

    def since(self, before: "Disturbances") -> str:
        """What happened after `before`, in words; empty when nothing did."""
        names = self.__dataclass_fields__
        grown = {name: getattr(self, name) - getattr(before, name) for name in names}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in grown.items() if count)


class Disturbed(RuntimeError):
    """A timed region in which something was compiled, captured or allocated."""


@contextmanager
def undisturbed(engine: Engine) -> Iterator[None]:
    """A timed window: Disturbed is raised at its end where any of it happened; the GPU's state is read around it."""
    before = Disturbances.now(engine)
    with timed_window():
        yield
    happened = Disturbances.now(engine).since(before)
    if happened:
        raise Disturbed(f"inside the timed region: {happened}")


def settle(engine: Engine, action: Callable[[], object], attempts: int) -> int:
    """Repeat an untimed action until it disturbs nothing; returns how often it ran."""
    for attempt in range(1, attempts + 1):
        before = Disturbances.now(engine)
        action()
        if not Disturbances.now(engine).since(before):
            return attempt
    return attempts


def undisturbed_result(engine: Engine, action: Callable[[], T], attempts: int) -> tuple[T, int]:
    """(what the first undisturbed run of a timed action gave, how many disturbed ones were thrown away before it).

    For regions whose shapes depend on their own timing, so that no warm-up meets all of them. Raises Disturbed where
    every attempt was. The GPU's state is read around each.
    """
    for thrown in range(attempts):
        before = Disturbances.now(engine)
        with timed_window():
            result = action()
        happened = Disturbances.now(engine).since(before)
        if not happened:
            return result, thrown
    raise Disturbed(f"inside the timed region, {attempts} times over: {happened}")
