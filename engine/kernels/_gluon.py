"""Gluon for Hopper, where this Triton has the one that our kernels are written in.

Gluon is experimental: another release is another language. Without it the kernel modules still import, and
`runs_on_hopper` says that nothing in them runs.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from engine.kernels._triton import INTERPRETED, triton

gl: Any
gluon: Any
TmaDescriptor: Any
try:
    if not triton.__version__.startswith("3.6."):
        raise ImportError
    from triton.experimental import gluon  # type: ignore[no-redef]
    from triton.experimental.gluon import language as gl  # type: ignore[no-redef]
    from triton.experimental.gluon.language.nvidia.ampere import mma_v2
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as TmaDescriptor  # type: ignore[no-redef]
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    HAS_GLUON = True
except (ImportError, AttributeError):
    gluon, gl, TmaDescriptor = SimpleNamespace(jit=triton.jit), SimpleNamespace(constexpr=int), None
    fence_async_shared = mbarrier = tma = warpgroup_mma = warpgroup_mma_wait = mma_v2 = None
    gdc_launch_dependents = gdc_wait = None
    HAS_GLUON = False

__all__ = [
    "CONSUMER_REGISTERS", "HAS_GLUON", "MAX_REGISTERS", "PRODUCER_REGISTERS", "TmaDescriptor", "fence_async_shared",
    "gdc_launch_dependents", "gdc_wait", "gl", "gluon", "is_hopper", "mbarrier", "mma_v2", "runs_on_hopper", "tma",
    "warpgroup_mma", "warpgroup_mma_wait",
]  # fmt: skip

# Two warpgroups that compute and one with the warp that brings them their data: 12 warps start with 168 registers a
# thread (65536 / 384); then the third gives its own away.
MAX_REGISTERS = 168
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)


@cache
def is_hopper(index: int) -> bool:
    """Whether the CUDA device of this index runs sm_90a's instructions."""
    return torch.cuda.get_device_capability(index) == (9, 0)


def runs_on_hopper(x: Tensor) -> bool:
    """Whether `x` lies on a Hopper GPU and its kernels can be compiled here."""
    return HAS_GLUON and not INTERPRETED and x.is_cuda and is_hopper(x.get_device())
