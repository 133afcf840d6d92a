"""Linear + residual + sums of squares, with and without split K."""

import pytest
import torch

from tests.kernel_gates import (
    DEVICE,
    DTYPES,
    ROWS,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    strided,
    tolerance,
)  # fmt: skip
from variants.kernels.linear_add import linear_add, linear_add_reference, linear_add_triton
from variants.kernels.norm_linear import norm_linear_reference, norm_linear_triton
from variants.kernels.tickets import MAX_TICKETS, tickets
from variants.kernels.tiles import Tile

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
# (K, N): odd, and on a GPU the models' own.
SHAPES = [
    (1100, 75),
    (99, 40),
    *(pytest.param(k, n, marks=pytest.mark.gpu) for k, n in [(736, 1128), (5125, 513), (3072, 1024), (12288, 4096)]),
]


def inputs(rows, k, n, dtype):
    x, residual = strided(randn(rows, k, dtype=dtype, seed=rows)), strided(randn(rows, n, dtype=dtype, seed=1))
    return x, randn(n, k, dtype=dtype, seed=2, scale=0.05), randn(n, dtype=dtype, seed=3), residual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_matches_float64(k, n, rows, dtype, monkeypatch):
    x, weight, bias, residual = inputs(rows, k, n, dtype)
    before = residual.clone()
    guarded = guard_outputs(monkeypatch)
    y, partials = linear_add_triton(x, weight, bias, residual)
    guarded.check()
    oracle, _ = linear_add_reference(x.double(), weight.double(), bias.double(), residual.double())
    assert relative_error(y, oracle) < tolerance(dtype, sums=k)
    assert relative_error(partials.sum(1), y.double().square().sum(1)) < tolerance(torch.float32, sums=n)
    assert torch.equal(residual, before)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("k", [640, 700])
@pytest.mark.parametrize(("path", "rows"), [("skinny", 7), ("wide", 7), ("wide", 21)])
def test_parts_of_k_add_up_and_leave_no_ticket(path, rows, k, splits):
    x, weight, bias, residual = inputs(rows, k, 75, torch.float32)
    tile = Tile(path, 8 if path == "skinny" else 16, 32, 64, 4, 2, splits)
    oracle, _ = linear_add_reference(x.double(), weight.double(), bias.double(), residual.double())
    first = linear_add_triton(x, weight, bias, residual, tile=tile)[0]
    assert relative_error(first, oracle) < tolerance(torch.float32, sums=k)
    assert torch.equal(linear_add_triton(x, weight, bias, residual, tile=tile)[0], first)
    assert not tickets(x.device).any()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [33, 64, 200])
@pytest.mark.parametrize("splits", [1, 3])
def test_wide_tiles_launched_dependently_are_the_same_under_pdl(splits, rows):
    """Read by the tensor memory accelerator right after the wait, and written by the kernel before it."""
    x = randn(rows, 1024, dtype=torch.bfloat16, seed=4)
    weights = [randn(1024, 1024, dtype=torch.bfloat16, seed=s, scale=0.03) for s in range(6, 14)]
    adds = Tile("wide", 64, 64, 64, 4, 5, splits, dependent=True)
    norms = Tile("wide", 64, 32, 128, 4, 3, dependent=True)

    def chain(pdl):
        y = x
        for first, second in zip(weights[::2], weights[1::2], strict=True):
            y, partials = linear_add_triton(y, first, None, y, pdl, adds)
            y, _ = norm_linear_triton(y, None, second, None, 1e-6, partials, pdl, norms)
        return y

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
    assert not tickets(torch.device(DEVICE, 0)).any()


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_of_k_by_tensor_memory(dtype, splits):
    x, weight, bias, residual = (t.contiguous() for t in inputs(64, 12288, 4096, dtype))
    tile = Tile("wide", 64, 128, 64, 8, 3, splits)
    oracle, _ = linear_add_reference(x.double(), weight.double(), bias.double(), residual.double())
    first = linear_add_triton(x, weight, bias, residual, tile=tile)[0]
    assert relative_error(first, oracle) < tolerance(dtype, sums=12288)
    assert torch.equal(linear_add_triton(x, weight, bias, residual, tile=tile)[0], first)
    assert not tickets(x.device).any()


def test_more_tiles_than_tickets_are_not_split():
    x, weight, bias, residual = inputs(2, 64, 8 * (MAX_TICKETS + 1), torch.float32)
    with pytest.raises(ValueError, match="at most 4096"):
        linear_add_triton(x, weight, bias, residual, tile=Tile("gemv", 2, 8, 32, 4, 2, 2))


@pytest.mark.parametrize("rows", [3, 17, 66])
def test_special_rows_stay_in_their_row(rows):
    x, weight, bias, residual = inputs(rows, 1100, 75, torch.float32)
    x[0], x[1, 7], residual[2, 3] = 0, float("nan"), float("inf")
    y, partials = linear_add_triton(x, weight, bias, residual)
    torch.testing.assert_close(y[0], residual[0] + bias)
    assert y[1].isnan().all()
    assert partials[1].isnan().all()
    assert y[2].isinf().sum() == 1
    clean = [i for i in range(rows) if i not in (1, 2)]
    oracle, _ = linear_add_reference(x.double(), weight.double(), bias.double(), residual.double())
    assert relative_error(y[clean], oracle[clean]) < tolerance(torch.float32, sums=1100)
    assert partials[clean].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 65])
def test_its_sums_norm_the_next_layer(rows, dtype):
    x, weight, _, residual = inputs(rows, 300, 136, dtype)
    following = randn(40, 136, dtype=dtype, seed=9, scale=0.05)
    y, partials = linear_add_triton(x, weight, None, residual)
    z, _ = norm_linear_triton(y, None, following, None, 1e-6, partials)
    oracle, _ = norm_linear_reference(y.double(), None, following.double(), None, 1e-6)
    assert relative_error(z, oracle) < tolerance(dtype, sums=136)


def test_no_rows_and_the_public_function():
    assert linear_add_triton(*inputs(0, 300, 75, torch.float32))[0].shape == (0, 75)
    args = inputs(3, 300, 75, torch.float32)
    torch.testing.assert_close(linear_add(*args)[0], linear_add_reference(*args)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 200])
def test_deterministic_and_the_same_under_pdl(rows):
    x = randn(rows, 1024, dtype=torch.bfloat16, seed=4)
    weights = [randn(1024, 1024, dtype=torch.bfloat16, seed=s, scale=0.03) for s in range(6, 14)]
    assert_deterministic(lambda: linear_add_triton(x, weights[0], None, x)[0])
    assert_deterministic(lambda: linear_add_triton(x, weights[0], None, x)[1])

    def chain(pdl):
        y = x
        for first, second in zip(weights[::2], weights[1::2], strict=True):
            y, partials = linear_add_triton(y, first, None, y, pdl)
            y, _ = norm_linear_triton(y, None, second, None, 1e-6, partials, pdl)
        return y

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
    assert not tickets(torch.device(DEVICE, 0)).any()
