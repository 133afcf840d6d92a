"""Sequence lengths of a ragged batch, the same for whoever needs them: the worker, the floor, the checks."""

import math
from random import Random
from statistics import NormalDist


def lognormal_lengths(count: int, mean: int, sigma: float, seed: str) -> list[int]:
    """`count` lengths of at least 1 whose sum is exactly count x mean, log-normal of this sigma, in random order.

    Stratified: one draw from each of `count` equally likely parts, so that small batches have the same shape as large.
    """
    draw = Random(seed)
    # In (0, 1): a normal has no quantile at 0.
    z = [NormalDist().inv_cdf((i + 0.01 + 0.98 * draw.random()) / count) for i in range(count)]
    draw.shuffle(z)
    # Relative to the largest, so that no sigma overflows.
    weights = [math.exp(sigma * (each - max(z))) for each in z]
    scale = count * (mean - 1) / sum(weights)
    lengths, taken, reached = [], 0, 0.0
    for weight in weights:
        reached += scale * weight
        lengths.append(1 + round(reached) - taken)
        taken = round(reached)
    return lengths
