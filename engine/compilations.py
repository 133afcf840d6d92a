"""How often something was compiled in this process: each time costs seconds that look like a slow step."""

import functools
import sys
from dataclasses import dataclass
from typing import Any

_triton_compilations = 0


@dataclass(frozen=True)
class Compilations:
    """Totals since the process began, or since `watch_triton` for Triton's kernels."""

    triton: int
    dynamo: int

    @classmethod
    def now(cls) -> "Compilations":
        """The running totals."""
        # Importing Dynamo takes seconds; where nobody has, it has compiled nothing.
        dynamo: Any = sys.modules.get("torch._dynamo.utils")
        frames = dynamo.counters["frames"]["total"] if dynamo else 0
        return cls(_triton_compilations, frames)


@functools.cache
def watch_triton() -> None:
    """Count Triton's compilations from now on; without Triton there are none."""
    try:
        import triton
    except ImportError:
        return
    before = triton.knobs.runtime.jit_post_compile_hook

    def count(*args: Any, **kwargs: Any) -> Any:
        global _triton_compilations
        _triton_compilations += 1
        return before(*args, **kwargs) if before else None

    triton.knobs.runtime.jit_post_compile_hook = count
