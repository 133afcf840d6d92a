"""Triton where the platform has it, and what every launcher needs of it.

Without Triton the kernel modules still import: `triton.jit` leaves the kernel alone and the public functions run their
plain-PyTorch twins.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def _leave_alone(fn: Any = None, **_options: Any) -> Any:
    """Stands in for `triton.jit`, with and without options."""
    return _leave_alone if fn is None else fn


triton: Any
tl: Any
TensorDescriptor: Any = None
try:
    import triton  # type: ignore[no-redef]
    import triton.language as tl  # type: ignore[no-redef]
    from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[no-redef]
except ImportError:
    triton, tl = SimpleNamespace(jit=_leave_alone), SimpleNamespace(constexpr=float)
    INTERPRETED = False
else:
    INTERPRETED = bool(triton.knobs.runtime.interpret)

__all__ = [
    "INTERPRETED", "TensorDescriptor", "cdiv", "next_power_of_2", "num_sms", "pdl_options", "tl", "triton",
]  # fmt: skip

# The grid that heuristics assume where no GPU says otherwise (the interpreter): an H200's.
DEFAULT_NUM_SMS = 132


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(0, n - 1).bit_length()


@cache
def _num_sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def num_sms(x: Tensor) -> int:
    """Multiprocessors of the GPU that holds `x`."""
    return _num_sms(x.get_device()) if x.is_cuda else DEFAULT_NUM_SMS


def pdl_options(pdl: bool) -> dict[str, bool]:
    """Launch options of a kernel with a `PDL` constexpr.

    Under programmatic dependent launch a kernel may start before its predecessor ends. Two rules keep it right: every
    program calls `gdc_wait` before it touches anything that a predecessor wrote or may still read, and only constants
    (weights, tables) are loaded before it. `gdc_launch_dependents` is a hint, given first. The interpreter has neither.
    """
    return {"PDL": True, "launch_pdl": True} if pdl and not INTERPRETED else {"PDL": False}
