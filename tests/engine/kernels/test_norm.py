"""RMSNorm kernels against their float64 twins."""

import pytest
import torch

from engine.kernels.norm import (
    add_rms_norm,
    add_rms_norm_reference,
    add_rms_norm_triton,
    norm_tile,
    rms_norm,
    rms_norm_reference,
    rms_norm_triton,
)  # fmt: skip
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

EPS = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def oracle(x, weight, eps=EPS):
    return rms_norm_reference(x.double(), None if weight is None else weight.double(), eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("h", [8, 576, 1128, 5125])
def test_matches_float64(rows, h, dtype, monkeypatch):
    x = strided(randn(rows, h, dtype=dtype, seed=rows))
    weight = randn(h, dtype=dtype, seed=h)
    guarded = guard_outputs(monkeypatch)
    y = rms_norm_triton(x, weight, EPS)
    guarded.check()
    assert relative_error(y, oracle(x, weight)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, pytest.param(511, marks=pytest.mark.gpu)])
def test_add_rounds_the_sum_once_and_never_writes_its_inputs(rows, dtype, monkeypatch):
    x, residual = randn(rows, 736, dtype=dtype, seed=1), strided(randn(rows, 736, dtype=dtype, seed=2))
    weight = randn(736, dtype=dtype, seed=3)
    before = x.clone(), residual.clone()
    guarded = guard_outputs(monkeypatch)
    y, s = add_rms_norm_triton(x, residual, weight, EPS)
    guarded.check()
    assert torch.equal(s, x + residual)
    assert relative_error(y, oracle(s, weight)) < tolerance(dtype)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_norms_heads_of_a_packed_projection(head_dim, dtype):
    heads, rows = 5, 3
    qkv = randn(rows, (heads + 2) * head_dim, dtype=dtype, seed=4)
    q = qkv[:, : heads * head_dim].unflatten(1, (heads, head_dim))
    weight = randn(head_dim, dtype=dtype, seed=5)
    assert relative_error(rms_norm_triton(q, weight, EPS), oracle(q, weight)) < tolerance(dtype)


def test_special_rows_stay_in_their_row():
    x = randn(6, 300, dtype=torch.float32, seed=6)
    x[1] = 0
    x[2, 7] = float("nan")
    x[3, 8] = float("inf")
    x[4, 9] = 1e4
    y = rms_norm_triton(x, None, EPS)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    assert y[2].isnan().all()
    clean = [0, 1, 4, 5]
    assert relative_error(y[clean], oracle(x[clean], None)) < tolerance(torch.float32)


def test_subnormals_are_governed_by_eps():
    x = torch.full((2, 64), 1e-40, device=DEVICE)
    assert rms_norm_triton(x, None, EPS).abs().max().item() <= 1e-36


def test_no_rows():
    x = torch.empty(0, 64, device=DEVICE)
    assert rms_norm_triton(x, None, EPS).shape == (0, 64)
    assert add_rms_norm_triton(x, x, None, EPS)[1].shape == (0, 64)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("h", [1, 64, 576, 5125, 16384])
def test_tiles_cover_a_row_with_enough_warps(rows, h):
    tile_rows, block_h, warps = norm_tile(rows, h)
    assert block_h >= h
    assert tile_rows * block_h <= max(1024, block_h)
    assert warps in (1, 2, 4, 8, 16)


def test_public_functions_match_their_twins():
    x, residual = randn(3, 40, dtype=torch.float32, seed=7), randn(3, 40, dtype=torch.float32, seed=8)
    torch.testing.assert_close(rms_norm(x, None, EPS), rms_norm_reference(x, None, EPS))
    torch.testing.assert_close(add_rms_norm(x, residual, None, EPS), add_rms_norm_reference(x, residual, None, EPS))


@pytest.mark.gpu
def test_deterministic_and_the_same_under_pdl():
    weight = randn(4096, dtype=torch.bfloat16, seed=9)
    x, residual = (randn(64, 4096, dtype=torch.bfloat16, seed=s) for s in (10, 11))
    assert_deterministic(lambda: rms_norm_triton(x, weight, EPS))

    def chain(pdl):
        y, s = x, residual
        for _ in range(8):
            y, s = add_rms_norm_triton(y, s, weight, EPS, pdl)
        return torch.stack((y, s))

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
