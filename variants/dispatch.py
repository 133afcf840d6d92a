"""Where a rung pays: decided per product, from its rows and its weight's shape.

Where `fusebench tune` has measured a shape on this GPU, its bound decides (variants/kernels/tile_table.py). Otherwise
the bounds below do. They were set on an H200: attention's in the whole step (docs/data/whole_step_search.json), those
for many rows by docs/data/many_rows.json and prefill_choices.json, the others each fused kernel in a CUDA graph against
what it replaces, weights cold in L2. Those timings were not kept (docs/challenges.md) and are to be measured again.
Other GPUs use the same.
"""

import logging
import math
from functools import cache

from torch import Tensor

from variants.kernels.normed_product_sm90 import hopper_takes_product
from variants.kernels.tile_table import key_of, measured_for, on_trial, rows_class

logger = logging.getLogger("fusebench.variants")

# The kernel of each rung whose shapes are measured.
KERNELS = {
    "norm_linear": "norm_linear",
    "residual_epilogue": "linear_add",
    "silu_epilogue": "gate_up_silu",
    "lm_head": "lm_head",
}

# Above this many weights a product is bound by bytes and its launch matters less.
LARGE_WEIGHTS = 16 * 2**20

# Most rows at which a rung is at least as fast as what it replaces: (small weights, large weights).
MAX_ROWS = {
    "norm_linear": (32, 16),
    "residual_epilogue": (32, 16),
    "silu_epilogue": (32, 16),
    "lm_head": (16, 16),
}
# From this many rows on they pay again, with kernels for Hopper, ...
MIN_MANY_ROWS = {"norm_linear": (4096, 4096), "silu_epilogue": (1024, 512)}
# ... from this many the product for Hopper norms, rotates and stores heads too (docs/data/prefill_choices.json) ...
MIN_WHOLE_HEAD_ROWS = (1024, math.inf)
# ... and from this many cuBLAS adds the residual as it stores (docs/data/many_rows.json).
MIN_ADDED_ROWS = 1024
# Most rows of a decode step whose attention pays: it has no weight and no entry in the table.
MAX_ATTENTION_ROWS = 64


def pays_here(rung: str, x_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether the fused kernel of `rung` is at least as fast as what it replaces, on the GPU that holds `x_MK`."""
    (num_rows, k), n = x_MK.shape, weight_NK.shape[0]
    key = key_of(KERNELS[rung], n, k)
    if key in on_trial().fused:
        return on_trial().fused[key]
    measured = measured_for(x_MK)
    if rows_class(num_rows) in measured.apart.get(key, ()):
        return False
    if rung in MIN_MANY_ROWS:
        least = measured.fused_from_rows.get(key, MIN_MANY_ROWS[rung][n * k > LARGE_WEIGHTS])
        if num_rows >= least and hopper_takes_product(x_MK, weight_NK):
            return True
    return num_rows <= measured.fused_up_to_rows.get(key, most_rows(rung, n, k))


def product_adds(x_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether the product is large enough for the residual to be added by cuBLAS, in place."""
    return x_MK.shape[0] >= MIN_ADDED_ROWS and not _tried("residual_epilogue", weight_NK)


def whole_heads_pay(x_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether the QKV product is to hand out heads that are normed, rotated and stored."""
    enough = x_MK.shape[0] >= MIN_WHOLE_HEAD_ROWS[weight_NK.numel() > LARGE_WEIGHTS]
    return on_trial().fused.get("whole_heads", enough and not _tried("norm_linear", weight_NK))


def _tried(rung: str, weight_NK: Tensor) -> bool:
    """Whether a trial says how the rung's product with this weight runs: what stands for it would hide that."""
    return key_of(KERNELS[rung], *weight_NK.shape) in on_trial().fused


def attention_pays(num_rows: int, hopper: bool) -> bool:
    """Whether a decode step's attention is to be one kernel with what lies before it.

    The kernel for Hopper, where it can run (`hopper`), pays with any number of rows.
    """
    return on_trial().fused.get("attention", hopper or num_rows <= MAX_ATTENTION_ROWS)


def most_rows(rung: str, num_outputs: int, num_inputs: int) -> int:
    """The most rows at which a rung pays whose shape was not measured; from MIN_MANY_ROWS on it pays again."""
    return MAX_ROWS[rung][num_outputs * num_inputs > LARGE_WEIGHTS]


@cache
def say_off(rung: str, reason: str) -> None:
    """Log, once, that a rung is switched on and runs nowhere."""
    logger.info("%s does not run: %s", rung, reason)
