"""What is drawn of a ragged batch or of requests, the same for whoever needs it: the worker, the floor, the checks."""

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from statistics import NormalDist

# Of nano-vLLM's random prompts.
LARGEST_TOKEN_ID = 10_000


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


def draw_prompts(
    count: int, prompt_tokens: Sequence[int], output_tokens: Sequence[int], seed: int | str = 0
) -> list[tuple[list[int], int]]:
    """(prompt, tokens of its answer) in the order of draws of nano-vLLM's bench: each prompt's length, then its tokens;
    then the answers. The ranges include their ends."""
    draw = Random(seed)
    prompts = [[draw.randint(0, LARGEST_TOKEN_ID) for _ in range(draw.randint(*prompt_tokens))] for _ in range(count)]
    return [(prompt, draw.randint(*output_tokens)) for prompt in prompts]


@lru_cache(maxsize=8)
def request_lengths(
    count: int, prompt_tokens: tuple[int, ...], output_tokens: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """(prompt, output) tokens of the same requests."""
    return tuple((len(prompt), output) for prompt, output in draw_prompts(count, prompt_tokens, output_tokens))
