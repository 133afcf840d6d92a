"""RMSNorm + gate/up + SiLU product against float64 and against the unfused path."""

import pytest
import torch

from engine.kernels.activation import silu_mul_triton
from engine.kernels.norm import rms_norm_triton
from tests.kernel_gates import (
    DTYPES,
    ROWS,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    strided,
    tolerance,
    unit_roundoff,
)  # fmt: skip
from variants.kernels.gate_up_silu import norm_gate_up_silu, norm_gate_up_silu_reference, norm_gate_up_silu_triton

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
EPS = 1e-6
# (K, I): odd, and on a GPU the models' own.
SHAPES = [
    (136, 75),
    (99, 40),
    *(pytest.param(k, i, marks=pytest.mark.gpu) for k, i in [(736, 1128), (576, 1536), (1024, 3072), (4096, 12288)]),
]


def inputs(rows, k, i, dtype):
    x, residual = (strided(randn(rows, k, dtype=dtype, seed=s + rows)) for s in (0, 1))
    return x, residual, randn(2 * i, k, dtype=dtype, seed=2, scale=0.05), randn(2 * i, dtype=dtype, seed=3)


def oracle(s, weight, bias):
    return norm_gate_up_silu_reference(s.double(), None, weight.double(), bias.double(), EPS)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("k", "i"), SHAPES)
def test_matches_float64_and_beats_the_unfused_path(k, i, rows, dtype, monkeypatch):
    x, residual, weight, bias = inputs(rows, k, i, dtype)
    guarded = guard_outputs(monkeypatch)
    h, s = norm_gate_up_silu_triton(x, residual, weight, bias, EPS)
    guarded.check()
    monkeypatch.undo()
    assert torch.equal(s, x + residual)
    expected = oracle(s, weight, bias)
    error = relative_error(h, expected)
    # Errors of gate and up both reach the product.
    assert error < min(unit_roundoff(dtype), 2.5e-3) + 3 * tolerance(torch.float32, sums=k)
    if dtype != torch.float32:
        unfused = silu_mul_triton(torch.nn.functional.linear(rms_norm_triton(s, None, EPS), weight, bias))
        assert error <= 1.05 * relative_error(unfused, expected)


@pytest.mark.parametrize("rows", [1, 5, 65])
def test_partial_sums_replace_the_squares(rows):
    x, _, weight, bias = inputs(rows, 136, 75, torch.float32)
    partials = torch.stack([part.square().sum(1) for part in x.split(34, dim=1)], dim=1)
    h, s = norm_gate_up_silu_triton(x, None, weight, bias, EPS, partials)
    assert s is x
    assert relative_error(h, oracle(x, weight, bias)) < 3 * tolerance(torch.float32, sums=136)


@pytest.mark.parametrize("rows", [4, 17, 66])
def test_special_rows_stay_in_their_row(rows):
    x, residual, weight, bias = inputs(rows, 136, 75, torch.float32)
    x[0], residual[0] = 0, 0
    x[1, 7], x[2, 8], x[3, 9] = float("nan"), float("inf"), 1e4
    h, s = norm_gate_up_silu_triton(x, residual, weight, bias, EPS)
    assert h[1].isnan().all()
    clean = [i for i in range(rows) if i not in (1, 2)]
    assert relative_error(h[clean], oracle(s[clean], weight, bias)) < 3 * tolerance(torch.float32, sums=136)


def test_no_rows_and_the_public_function():
    assert norm_gate_up_silu_triton(*inputs(0, 136, 75, torch.float32), EPS)[0].shape == (0, 75)
    args = (*inputs(3, 136, 75, torch.float32), EPS)
    torch.testing.assert_close(norm_gate_up_silu(*args), norm_gate_up_silu_reference(*args))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 200])
def test_deterministic_and_the_same_under_pdl(rows):
    x, residual = (randn(rows, 1024, dtype=torch.bfloat16, seed=s) for s in (4, 5))
    weights = [randn(2048, 1024, dtype=torch.bfloat16, seed=s, scale=0.05) for s in range(6, 12)]
    assert_deterministic(lambda: norm_gate_up_silu_triton(x, residual, weights[0], None, EPS)[0])

    def chain(pdl):
        h, s = x, residual
        for weight in weights:
            h, s = norm_gate_up_silu_triton(h, s, weight, None, EPS, pdl=pdl)
        return torch.stack((h, s))

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
