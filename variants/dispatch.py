"""Where a rung pays: decided per product, from its rows and its weight's shape.

`MAX_ROWS` comes from measurements on an H200 (docs/challenges.md); other GPUs use it until they are measured.
"""

MAX_ROWS = {"norm_linear": 64, "residual_epilogue": 64, "silu_epilogue": 64, "lm_head": 64}


def pays(rung: str, num_rows: int, num_outputs: int, num_inputs: int) -> bool:
    """Whether the fused kernel of `rung` is at least as fast as what it replaces."""
    return num_rows <= MAX_ROWS[rung]
