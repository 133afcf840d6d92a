"""RMSNorm + Linear against float64 and against the unfused path."""

import pytest
import torch

from engine.kernels.norm import rms_norm_triton
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
from variants.kernels.norm_linear import norm_linear, norm_linear_reference, norm_linear_triton

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
EPS = 1e-6
# (K, N): odd, and on a GPU the models' own.
SHAPES = [
    (136, 75),
    (99, 40),
    *(
        pytest.param(k, n, marks=pytest.mark.gpu)
        for k, n in [(736, 1128), (5125, 513), (576, 960), (1024, 4096), (4096, 6144)]
    ),
]


def inputs(rows, k, n, dtype):
    """x and residual with strided rows, a folded weight, a bias; with one seed, one would be the other's rows."""
    x, residual = (strided(randn(rows, k, dtype=dtype, seed=10 + s + rows)) for s in (0, 1))
    return x, residual, randn(n, k, dtype=dtype, seed=2, scale=0.02), randn(n, dtype=dtype, seed=3)


def oracle(s, weight, bias):
    return norm_linear_reference(s.double(), None, weight.double(), None if bias is None else bias.double(), EPS)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_matches_float64_and_is_as_accurate_as_the_unfused_path(k, n, rows, dtype, monkeypatch):
    x, residual, weight, bias = inputs(rows, k, n, dtype)
    before = x.clone(), residual.clone()
    guarded = guard_outputs(monkeypatch)
    y, s = norm_linear_triton(x, residual, weight, bias, EPS)
    guarded.check()
    monkeypatch.undo()
    assert torch.equal(s, x + residual)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    expected = oracle(s, weight, bias)
    error = relative_error(y, expected)
    assert error < tolerance(dtype, sums=k)
    if dtype != torch.float32:
        unfused = torch.nn.functional.linear(rms_norm_triton(s, None, EPS), weight, bias)
        assert error <= 1.05 * relative_error(unfused, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 17, 65])
def test_partial_sums_replace_the_squares(rows, dtype, monkeypatch):
    x, _, weight, _ = inputs(rows, 136, 75, dtype)
    partials = x.float().square().split(34, dim=1)
    partials = torch.stack([part.sum(1) for part in partials], dim=1)
    guarded = guard_outputs(monkeypatch)
    y, s = norm_linear_triton(x, None, weight, None, EPS, partials)
    guarded.check()
    assert s is x
    assert relative_error(y, oracle(x, weight, None)) < tolerance(dtype, sums=136)


@pytest.mark.parametrize("rows", [4, 17, 66])
def test_special_rows_stay_in_their_row(rows):
    x, residual, weight, bias = inputs(rows, 136, 75, torch.float32)
    x[0], residual[0] = 0, 0
    x[1, 7] = float("nan")
    x[2, 8] = float("inf")
    x[3, 9] = 1e4
    y, s = norm_linear_triton(x, residual, weight, bias, EPS)
    assert y[1].isnan().all()
    assert torch.equal(y[0], bias)
    clean = [i for i in range(rows) if i not in (1, 2)]
    assert relative_error(y[clean], oracle(s[clean], weight, bias)) < tolerance(torch.float32, sums=136)


@pytest.mark.parametrize("rows", [1, 5, 65])
def test_a_row_does_not_depend_on_the_rows_beside_it(rows):
    x, residual, weight, bias = inputs(rows, 136, 75, torch.float32)
    y, _ = norm_linear_triton(x, residual, weight, bias, EPS)
    x[1:], residual[1:] = 7.0, 3.0
    assert torch.equal(norm_linear_triton(x, residual, weight, bias, EPS)[0][0], y[0])


def test_no_rows_and_the_public_function():
    x, residual, weight, bias = inputs(0, 136, 75, torch.float32)
    assert norm_linear_triton(x, residual, weight, bias, EPS)[0].shape == (0, 75)
    x, residual, weight, bias = inputs(3, 136, 75, torch.float32)
    torch.testing.assert_close(
        norm_linear(x, residual, weight, bias, EPS), norm_linear_reference(x, residual, weight, bias, EPS)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 200])
def test_deterministic_and_the_same_under_pdl(rows):
    x, residual = (randn(rows, 1024, dtype=torch.bfloat16, seed=s) for s in (4, 5))
    weights = [randn(1024, 1024, dtype=torch.bfloat16, seed=s, scale=0.03) for s in range(6, 14)]
    assert_deterministic(lambda: norm_linear_triton(x, residual, weights[0], None, EPS)[0])

    def chain(pdl):
        y, s = x, residual
        for weight in weights:
            y, s = norm_linear_triton(y, s, weight, None, EPS, pdl=pdl)
        return torch.stack((y, s))

    assert_pdl_changes_nothing(chain, lambda: x.normal_())


@pytest.mark.gpu
def test_outputs_stay_on_the_device():
    x, residual, weight, bias = inputs(3, 136, 75, torch.bfloat16)
    norm_linear_triton(x, residual, weight, bias, EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = norm_linear_triton(x, residual, weight, bias, EPS)
    graph.replay()
    assert torch.equal(y, norm_linear_triton(x, residual, weight, bias, EPS)[0])
    assert y.device.type == DEVICE
