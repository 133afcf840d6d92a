"""Where a rung pays: decided per product, from its rows and its weight's shape.

The bounds were set on an H200: each fused kernel in a CUDA graph against what it replaces, weights cold in L2. The
timings were not kept (docs/challenges.md), so they are to be measured again. Other GPUs use the same.
"""

import logging
from functools import cache

logger = logging.getLogger("fusebench.variants")

# Above this many weights a product is bound by bytes and its launch matters less.
LARGE_WEIGHTS = 16 * 2**20

# Most rows at which a rung is at least as fast as what it replaces: (small weights, large weights).
MAX_ROWS = {
    "norm_linear": (32, 16),
    "residual_epilogue": (32, 16),
    "silu_epilogue": (32, 16),
    "lm_head": (16, 16),
    "attention": (16, 16),
}
# From this many rows on it pays again. Nowhere yet: the wide tiles are slower than cuBLAS and a pass over memory.
MIN_PREFILL_ROWS: dict[str, int] = {}


def pays(rung: str, num_rows: int, num_outputs: int, num_inputs: int) -> bool:
    """Whether the fused kernel of `rung` is at least as fast as what it replaces."""
    large = num_outputs * num_inputs > LARGE_WEIGHTS
    if num_rows <= MAX_ROWS[rung][large]:
        return True
    return not large and num_rows >= MIN_PREFILL_ROWS.get(rung, num_rows + 1)


@cache
def turn_off(rung: str, reason: str) -> None:
    """Say, once, that a rung is switched on and runs nowhere."""
    logger.info("%s does not run: %s", rung, reason)
