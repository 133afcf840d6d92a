"""The column of the largest element, against torch and at the edges of parts."""

import pytest
import torch

from engine.kernels._triton import INTERPRETED
from engine.kernels.argmax import (
    BLOCK_TOKENS,
    _merge_argmax_kernel,
    _part_argmax_kernel,
    argmax,
    argmax_reference,
    argmax_triton,
    merge_argmax_triton,
)
from tests.kernel_gates import DEVICE, DTYPES, guard_outputs, randn, strided

# The interpreter computes NaN and infinities with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 400])
@pytest.mark.parametrize("n", [1, 1000, 2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS + 1])
def test_is_the_lowest_column_of_the_largest_element(rows, n, dtype, monkeypatch):
    """Of 16-bit elements many are equal; with many rows a program has several blocks."""
    x = strided(randn(rows, n, dtype=dtype, seed=rows))
    guarded = guard_outputs(monkeypatch)
    tokens = argmax_triton(x)
    guarded.check()
    largest = x == x.amax(-1, keepdim=True)
    assert tokens.tolist() == largest.int().argmax(-1).tolist()


def test_equal_and_infinite_and_missing_elements():
    """The lowest of equals, over parts; NaN as +inf; a column even of a row of nothing."""
    x = torch.zeros(6, 3 * BLOCK_TOKENS, device=DEVICE)
    x[0, [2 * BLOCK_TOKENS + 5, BLOCK_TOKENS + 7, BLOCK_TOKENS + 9]] = 2.0
    x[1, -1] = float("nan")
    x[2] = float("-inf")
    x[3] = float("nan")
    x[4] = -1.0
    x[5, [4, 9]] = torch.tensor([float("inf"), float("nan")], device=DEVICE)
    expected = [BLOCK_TOKENS + 7, x.shape[1] - 1, 0, 0, 0, 4]
    assert argmax_triton(x).tolist() == expected
    assert argmax_reference(x).tolist() == expected


def test_the_merge_takes_more_parts_than_it_has_lanes():
    best = randn(3, 5000, dtype=torch.float32, seed=1)
    tokens = torch.arange(15_000, dtype=torch.int32, device=DEVICE).view(3, 5000)
    best[0, [4100, 52, 2100]] = 99.0
    best[1, 4999] = float("inf")
    best[2] = float("-inf")
    chosen, top = merge_argmax_triton(best, tokens)
    assert chosen.tolist() == [52, 9_999, 10_000]
    assert top.tolist() == [99.0, float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("kernel", "count"), [(_part_argmax_kernel, "num_blocks"), (_merge_argmax_kernel, "num_parts")]
)
def test_another_number_of_rows_compiles_nothing_new(kernel, count):
    """Of 128,256 tokens there are 32, 16 or 11 parts: multiples of 16, and one, are else compiled for."""
    general = (
        kernel.kwargs["do_not_specialize"] if INTERPRETED else [p.name for p in kernel.params if p.do_not_specialize]
    )
    assert count in general


def test_no_rows_and_the_public_function():
    assert argmax_triton(torch.empty(0, 8, device=DEVICE)).shape == (0,)
    x = randn(3, 10, dtype=torch.float32, seed=1)
    assert torch.equal(argmax(x), argmax_reference(x))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 64, 130, 256])
def test_of_a_whole_vocabulary_as_torch_does_and_the_same_under_pdl(rows):
    x = randn(rows, 151_936, dtype=torch.bfloat16, seed=rows)
    expected = torch.argmax(x.float(), dim=-1)
    for pdl in (False, True):
        for _ in range(20):
            assert torch.equal(argmax_triton(x, pdl), expected)
