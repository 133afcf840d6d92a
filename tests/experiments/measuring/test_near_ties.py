"""What rounding chooses among near ties is no fault, and faults stay faults: verdicts on drawn logits.

A draw is 155 positions, each met four times as in a real verdict: by a prefill and by decode batches, and again where a
greedy answer repeats itself. Reference logits are flat, as a model's of random weights, or peaked. The
baseline's are off by rounding; so are a right variant's, by other rounding.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from experiments.measuring import verdict
from experiments.measuring.verdict import SWAP_FACTOR, WRONG_SLACK, Divergence

POSITIONS, TIMES, VOCABULARY = 155, 4, 1024
# Standard deviations of a logit's error in bf16: qwen3-8b's and qwen3-0.6b's, whose mean KL is half the square.
LARGE, SMALL = 0.058, 0.0087
DTYPE = torch.bfloat16


def repeated(found: Divergence) -> Divergence:
    return Divergence(*(getattr(found, field.name).repeat(TIMES) for field in fields(Divergence)))


def drawn(
    seed: int, error: float = LARGE, ratio: float = 1.0, peaked: bool = False,
    fault: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> tuple[Divergence, Divergence]:  # fmt: skip
    """(variant, baseline); the variant's error is `ratio` times the baseline's, and `fault` is what it does besides."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    reference = normal(POSITIONS, VOCABULARY)
    if peaked:
        reference *= (0.9 + 0.6 * normal(POSITIONS, 1)).exp()
    # Some positions err more than others.
    size = error * (0.3 * normal(POSITIONS, 1)).exp()
    variant = fault(reference) + ratio * size * normal(POSITIONS, VOCABULARY)
    unfused = reference + size * normal(POSITIONS, VOCABULARY)
    at = torch.arange(POSITIONS)
    return (
        repeated(Divergence.between(reference, variant, at)),
        repeated(Divergence.between(reference, unfused, at)),
    )


def is_right(variant: Divergence, unfused: Divergence) -> bool:
    """The verdict where all greedy tokens are the reference's."""
    tokens = verdict._judge_tokens(torch.zeros(1), unfused, DTYPE)
    return verdict._judge_logits(tokens, variant, unfused, DTYPE).ok


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_errors_of_rounding_s_size_are_right(peaked: bool, ratio: float) -> None:
    """In all of 200 draws, though agreement itself often differs by more than five per cent of positions."""
    pairs = [drawn(seed, ratio=ratio, peaked=peaked) for seed in range(200)]
    assert all(is_right(*pair) for pair in pairs)
    if not peaked:
        assert sum(variant.top1 < unfused.top1 - 0.05 for variant, unfused in pairs) >= 5


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("error", [LARGE, SMALL])
def test_errors_twice_as_large_are_wrong(peaked: bool, error: float) -> None:
    """KL grows with their square."""
    assert not any(is_right(*drawn(seed, error, ratio=2.0, peaked=peaked)) for seed in range(50))


def wrong_scale(logits: Tensor) -> Tensor:
    return 1.02 * logits


def wrong_row(logits: Tensor) -> Tensor:
    """One row in fifty gets its neighbour's logits."""
    wrong = logits.clone()
    wrong[::50] = logits.roll(1, 0)[::50]
    return wrong


def wrong_column(logits: Tensor) -> Tensor:
    """A tile of 16 columns lost."""
    wrong = logits.clone()
    wrong[:, 160:176] = 0
    return wrong


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("fault", [wrong_scale, wrong_row, wrong_column])
def test_faults_beside_rounding_are_wrong(fault: Callable[[Tensor], Tensor], peaked: bool) -> None:
    assert not any(is_right(*drawn(seed, SMALL, peaked=peaked, fault=fault)) for seed in range(50))


def with_choices_behind(found: Divergence, count: int, by: float) -> Divergence:
    """The first `count` positions choose a token so far behind the best, everything else as it was."""
    behind, agree = found.behind_T.clone(), found.agree_T.clone()
    behind[:count], agree[:count] = by, False
    return replace(found, behind_T=behind, agree_T=agree)


def test_choices_count_by_how_far_behind_they_lie() -> None:
    """Near ties fall either way; of what rounding does not explain a per cent is too much, or one far enough."""
    _, unfused = drawn(0, peaked=True)
    swap = SWAP_FACTOR * unfused.largest_error(DTYPE)
    count = len(unfused.behind_T)
    allowed = int(WRONG_SLACK[DTYPE] * count) + 1
    assert is_right(with_choices_behind(unfused, count // 10, 0.9 * swap), unfused)
    assert is_right(with_choices_behind(unfused, allowed, 1.1 * swap), unfused)
    assert not is_right(with_choices_behind(unfused, allowed + 1, 1.1 * swap), unfused)
    assert not is_right(with_choices_behind(unfused, 1, 2.1 * swap), unfused)


def test_the_baseline_s_own_choices_are_within_what_rounding_explains() -> None:
    for seed in range(50):
        _, unfused = drawn(seed)
        assert unfused.beyond(SWAP_FACTOR * unfused.largest_error(DTYPE)) == 0
