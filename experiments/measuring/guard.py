"""Nothing may be compiled, tuned, captured or allocated from the driver while the clock runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._dynamo.utils import counters as dynamo_counters

from engine import Engine

_triton_compilations = 0


def watch_triton() -> None:
    """Count Triton's compilations from now on; without Triton there are none."""
    try:
        import triton
    except ImportError:
        return

    def count(*_args: object, **_kwargs: object) -> None:
        global _triton_compilations
        _triton_compilations += 1

    triton.knobs.runtime.jit_post_compile_hook = count


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
        frames = sum(dynamo_counters["frames"].values())
        return cls(_triton_compilations, frames, engine.runner.graphs.num_captures, allocations)

    def since(self, before: "Disturbances") -> str:
        """What happened after `before`, in words; empty when nothing did."""
        names = self.__dataclass_fields__
        grown = {name: getattr(self, name) - getattr(before, name) for name in names}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in grown.items() if count)


class Disturbed(RuntimeError):
    """A timed region in which something was compiled, captured or allocated."""


@contextmanager
def undisturbed(engine: Engine) -> Iterator[None]:
    """Raise Disturbed at the end of a block in which any of it happened."""
    before = Disturbances.now(engine)
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
