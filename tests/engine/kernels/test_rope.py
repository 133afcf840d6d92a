"""The rotary kernel against its float64 twin."""

import pytest
import torch

from engine.kernels.rope import rope, rope_reference, rope_triton
from tests.kernel_gates import DEVICE, DTYPES, guard_outputs, randn, relative_error, tolerance

# The interpreter computes NaN and infinities with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def tables(d, positions=50):
    angles = torch.arange(positions)[:, None] / 10_000.0 ** (torch.arange(0, d, 2) / d)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def inputs(rows, n, m, d, dtype):
    qkv = randn(rows, (n + 2 * m) * d, dtype=dtype, seed=rows + d)
    q, k, _ = qkv.split((n * d, m * d, m * d), dim=1)
    positions = (torch.arange(rows, dtype=torch.int32) * 7 % 50).to(DEVICE)
    return q.unflatten(1, (n, d)), k.unflatten(1, (m, d)), positions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 17, pytest.param(511, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("n", "m", "d"), [(9, 3, 64), (16, 8, 128), (5, 1, 80), (2, 2, 96)])
def test_matches_float64_on_views_of_a_packed_projection(rows, n, m, d, dtype, monkeypatch):
    q, k, positions = inputs(rows, n, m, d, dtype)
    cos, sin = tables(d)
    expected = rope_reference(q.double(), k.double(), positions, cos, sin)
    guarded = guard_outputs(monkeypatch)
    outputs = rope_triton(q, k, positions, cos, sin)
    guarded.check()
    for y, oracle in zip(outputs, expected, strict=True):
        assert y.is_contiguous()
        assert relative_error(y, oracle) < tolerance(dtype)


def test_padded_rows_read_no_table_row_below_zero_and_leave_others_alone():
    q, k, positions = inputs(4, 2, 1, 16, torch.float32)
    cos, sin = tables(16)
    expected = rope_triton(q, k, positions, cos, sin)[0]
    positions[2] = -1
    padded = rope_triton(q, k, positions, cos, sin)[0]
    assert torch.equal(padded[[0, 1, 3]], expected[[0, 1, 3]])
    assert torch.equal(padded[2], q[2])


def test_no_tokens():
    q, k, positions = inputs(0, 2, 1, 16, torch.float32)
    assert rope_triton(q, k, positions, *tables(16))[0].shape == (0, 2, 16)


def test_public_function_matches_its_twin():
    q, k, positions = inputs(3, 2, 1, 16, torch.float32)
    args = (q, k, positions, *tables(16))
    torch.testing.assert_close(rope(*args), rope_reference(*args))
