"""The held path of the fused linear layers: each kernel against its twin in float64, with tiles given by hand."""

import pytest
import torch

from engine.kernels._triton import next_power_of_2
from tests.kernel_gates import (
    DTYPES,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    strided,
    tolerance,
)
from variants.kernels.gate_up_silu import norm_gate_up_silu_reference, norm_gate_up_silu_triton
from variants.kernels.linear_add import linear_add_reference, linear_add_triton
from variants.kernels.lm_head import norm_lm_head_argmax_reference, norm_lm_head_argmax_triton
from variants.kernels.norm_linear import norm_linear_reference, norm_linear_triton
from variants.kernels.tickets import tickets
from variants.kernels.tiles import Tile

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
EPS = 1e-6
K, N = 200, 75
ROWS = [1, 3, 9, 16]
# All of K at once, and in steps; K and N fill no block.
BLOCKS = [pytest.param(16, 256, id="once"), pytest.param(32, 128, id="in steps")]


def held(rows: int, block_n: int, block_k: int, splits: int = 1, num_warps: int = 4) -> Tile:
    return Tile("held", max(8, next_power_of_2(rows)), block_n, block_k, num_warps, stages=1, splits=splits)


def rows_of(rows, dtype, width=K, seed=0):
    return strided(randn(rows, width, dtype=dtype, seed=seed + rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_n", "block_k"), BLOCKS)
@pytest.mark.parametrize("rows", ROWS)
def test_norm_linear(rows, block_n, block_k, dtype, monkeypatch):
    x, residual = rows_of(rows, dtype), rows_of(rows, dtype, seed=40)
    weight, bias = randn(N, K, dtype=dtype, seed=2, scale=0.02), randn(N, dtype=dtype, seed=3)
    guarded = guard_outputs(monkeypatch)
    y, s = norm_linear_triton(x, residual, weight, bias, EPS, tile=held(rows, block_n, block_k))
    guarded.check()
    expected, _ = norm_linear_reference(s.double(), None, weight.double(), bias.double(), EPS)
    assert relative_error(y, expected) < tolerance(dtype, sums=K)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_n", "block_k"), BLOCKS)
@pytest.mark.parametrize("rows", ROWS)
def test_gate_up_silu(rows, block_n, block_k, dtype, monkeypatch):
    x, weight = rows_of(rows, dtype), randn(2 * N, K, dtype=dtype, seed=2, scale=0.05)
    guarded = guard_outputs(monkeypatch)
    h, _ = norm_gate_up_silu_triton(x, None, weight, None, EPS, tile=held(rows, block_n, block_k))
    guarded.check()
    expected, _ = norm_gate_up_silu_reference(x.double(), None, weight.double(), None, EPS)
    # Errors of gate and up both reach the product.
    assert relative_error(h, expected) < tolerance(dtype, sums=K) + 2 * tolerance(torch.float32, sums=K)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("rows", ROWS)
def test_linear_add(rows, splits, dtype, monkeypatch):
    k = 700
    x, weight, residual = rows_of(rows, dtype, k), randn(N, k, dtype=dtype, seed=2, scale=0.02), rows_of(rows, dtype, N)
    tile = held(rows, 16, 256, splits)
    assert tile.once(k) == (splits == 3)
    guarded = guard_outputs(monkeypatch)
    y, partials = linear_add_triton(x, weight, None, residual, tile=tile)
    guarded.check()
    monkeypatch.undo()
    expected, _ = linear_add_reference(x.double(), weight.double(), None, residual.double())
    assert relative_error(y, expected) < tolerance(dtype, sums=k)
    assert relative_error(partials.sum(1), y.double().square().sum(1)) < tolerance(torch.float32, sums=N)
    assert torch.equal(linear_add_triton(x, weight, None, residual, tile=tile)[0], y)
    assert not tickets(x.device).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_lm_head(rows, dtype):
    x, gamma, weight = rows_of(rows, dtype), randn(K, dtype=dtype, seed=4), randn(501, K, dtype=dtype, seed=2)
    tokens, best = norm_lm_head_argmax_triton(x, None, gamma, weight, EPS, tile=held(rows, 16, 256))
    _, expected = norm_lm_head_argmax_reference(x.double(), None, gamma.double(), weight.double(), EPS)
    # The scaled row is rounded to the dtype before the product, in the twin's float64 it is not.
    assert relative_error(best, expected) < 2 * max(tolerance(dtype, sums=K), tolerance(torch.float32, sums=K))
    assert tokens.shape == (rows,)


def test_a_broken_row_stays_in_its_row():
    x, weight = rows_of(4, torch.float32), randn(N, K, dtype=torch.float32, seed=2, scale=0.02)
    x[1, 7], x[2, 8] = float("nan"), float("inf")
    y, _ = norm_linear_triton(x, None, weight, None, EPS, tile=held(4, 16, 256))
    expected, _ = norm_linear_reference(x.double(), None, weight.double(), None, EPS)
    assert y[1].isnan().all()
    assert relative_error(y[[0, 3]], expected[[0, 3]]) < tolerance(torch.float32, sums=K)


@pytest.mark.gpu
@pytest.mark.parametrize("block_k", [256, 1024])
@pytest.mark.parametrize("rows", [3, 8, 16])
def test_deterministic_and_the_same_under_pdl(rows, block_k):
    x = randn(rows, 1024, dtype=torch.bfloat16, seed=4)
    weights = [randn(1024, 1024, dtype=torch.bfloat16, seed=s, scale=0.03) for s in range(6, 14)]
    tile = held(rows, 16, block_k, num_warps=8)
    assert_deterministic(lambda: norm_linear_triton(x, None, weights[0], None, EPS, tile=tile)[0])

    def chain(pdl):
        y, partials = x, None
        for normed, added in zip(weights[::2], weights[1::2], strict=True):
            y, s = norm_linear_triton(y, None, normed, None, EPS, partials, pdl=pdl, tile=tile)
            y, partials = linear_add_triton(y, added, None, s, pdl=pdl, tile=held(rows, 16, block_k, 1024 // block_k))
        return y

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
