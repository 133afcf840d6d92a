"""One division of a multiprocessor's memory into cache and shared memory, for all kernels of the process.

The driver chooses it by kernel, and changes it only on a multiprocessor that has nothing to run. Two kernels that want
different ones then cannot be there side by side, which is what programmatic dependent launch is for. So every kernel
asks for as much shared memory as there is.
"""

import ctypes
import logging
from functools import cache
from typing import Any

from engine.kernels._triton import INTERPRETED, triton

# cuda.h: CUfunction_attribute, and its greatest value in per cent.
PREFERRED_SHARED_MEMORY_CARVEOUT = 9
ALL = 100
log = logging.getLogger("fusebench.variants")


@cache
def use_one() -> None:
    """Every kernel that Triton loads from now on asks for it; without a driver none does."""
    if INTERPRETED or not hasattr(triton, "knobs"):
        return
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return

    def on_load(module: Any, function: int, *_: Any) -> None:
        status = driver.cuFuncSetAttribute(ctypes.c_void_p(function), PREFERRED_SHARED_MEMORY_CARVEOUT, ALL)
        if status:
            log.warning("a kernel keeps its own carve-out: cuFuncSetAttribute gave %d", status)

    triton.knobs.runtime.kernel_load_end_hook.add(on_load)
