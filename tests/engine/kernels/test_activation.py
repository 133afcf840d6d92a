"""The gated SiLU product against its float64 twin."""

import pytest
import torch

from engine.kernels.activation import silu_mul, silu_mul_reference, silu_mul_triton
from tests.kernel_gates import DEVICE, DTYPES, ROWS, guard_outputs, randn, relative_error, strided, tolerance

# The interpreter computes NaN and infinities with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("i", [1, 736, 1128])
def test_matches_float64(rows, i, dtype, monkeypatch):
    x = strided(randn(rows, 2 * i, dtype=dtype, seed=rows, scale=3))
    guarded = guard_outputs(monkeypatch)
    y = silu_mul_triton(x)
    guarded.check()
    # One element has no mean: a single rounding may be a whole u.
    assert relative_error(y, silu_mul_reference(x.double())) < tolerance(dtype) * (2 if rows * i < 100 else 1)


def test_special_values_stay_in_place():
    x = torch.tensor([[float("nan"), 1.0, -1e4, 1e4, 1.0, 1.0, 2.0, 2.0], [1.0] * 8], device=DEVICE)
    y = silu_mul_triton(x)
    assert y[0, 0].isnan()
    assert y[0, 2].abs() == 0
    assert y[0, 3] == 2e4
    torch.testing.assert_close(y[1], silu_mul_reference(x[1:])[0])


def test_no_tokens_and_the_public_function():
    assert silu_mul_triton(torch.empty(0, 8, device=DEVICE)).shape == (0, 4)
    x = randn(3, 10, dtype=torch.float32, seed=1)
    torch.testing.assert_close(silu_mul(x), silu_mul_reference(x))
