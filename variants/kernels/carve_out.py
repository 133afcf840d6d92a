"""One division of a multiprocessor's memory into cache and shared memory, for all kernels that use much of the latter.

The driver chooses it by kernel, and changes it only on a multiprocessor that has nothing to run. Two kernels that want
different ones then cannot be there side by side, which is what programmatic dependent launch is for. So they all ask
for as much shared memory as there is. Not so a kernel that streams weights through registers: its loads under way take
room in the cache, and with little of it a large gemv slows down (docs/challenges.md).
"""

import ctypes
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from engine.kernels._triton import INTERPRETED, triton

# cuda.h: CUfunction_attribute, and its greatest value in per cent.
PREFERRED_SHARED_MEMORY_CARVEOUT = 9
ALL = 100
# A gemv's programs exchange a few sums; tiles for the tensor cores begin at about twice this.
LEAST_SHARED_BYTES = 16 * 1024
log = logging.getLogger("fusebench.variants")


@cache
def use_one() -> None:
    """Such kernels ask for it when Triton loads them, from now on; without a driver none does."""
    if INTERPRETED or not hasattr(triton, "knobs"):
        return
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return

    def on_load(module: Any, function: int, name: str, files: Mapping[str, Any], *_: Any) -> None:
        if shared_bytes(files) < LEAST_SHARED_BYTES:
            return
        status = driver.cuFuncSetAttribute(ctypes.c_void_p(function), PREFERRED_SHARED_MEMORY_CARVEOUT, ALL)
        if status:
            log.warning("%s keeps its own carve-out: cuFuncSetAttribute gave %d", name, status)

    triton.knobs.runtime.kernel_load_end_hook.add(on_load)


def shared_bytes(files: Mapping[str, Any]) -> int:
    """Shared memory of a program, from the files of Triton's cache by name; 0 where they do not tell."""
    described = next((path for file, path in files.items() if file.endswith(".json")), None)
    return 0 if described is None else int(json.loads(Path(described).read_text()).get("shared", 0))
