"""Per-head norm + RoPE + page store against the float64 twin and the three kernels it replaces."""

import pytest
import torch

from tests.kernel_gates import (
    DEVICE,
    DTYPES,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    strided,
    tolerance,
    unit_roundoff,
)  # fmt: skip
from variants.kernels.qkv_post import qk_norm_rope_store, qk_norm_rope_store_reference, qk_norm_rope_store_triton

EPS = 1e-6
BLOCK_SIZE = 16


def inputs(rows, n, m, d, dtype, norm=True):
    """The arguments up to eps; every third token is padding."""
    angles = torch.arange(50)[:, None] / 10_000.0 ** (torch.arange(0, d, 2) / d)
    positions = torch.arange(rows, dtype=torch.int32) * 7 % 50
    slots = torch.randperm(6 * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))[:rows].int()
    positions[1::3], slots[1::3] = -1, -1
    caches = [torch.full((6, BLOCK_SIZE, m, d), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)]
    weights = [randn(d, dtype=dtype, seed=s) if norm else None for s in (1, 2)]
    qkv = strided(randn(rows, (n + 2 * m) * d, dtype=dtype, seed=3))
    tables = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    return [qkv, *weights, *tables, positions.to(DEVICE), slots.to(DEVICE), *caches, n, m, d, EPS]


def doubled(args):
    """The same in float64, except the tables, with caches of its own."""
    return [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() and i not in (3, 4) else x
        for i, x in enumerate(args)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("rows", [1, 5, pytest.param(96, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("n", "m", "d"), [(9, 3, 64), (16, 8, 128), (5, 1, 80)])
def test_matches_float64(n, m, d, rows, norm, dtype, monkeypatch):
    args = inputs(rows, n, m, d, dtype, norm)
    wanted = doubled(args)
    expected = qk_norm_rope_store_reference(*wanted)
    guarded = guard_outputs(monkeypatch)
    q = qk_norm_rope_store_triton(*args)
    guarded.check()
    live = args[6] >= 0
    assert relative_error(q[live], expected[live]) < tolerance(dtype)
    for cache, oracle in zip(args[7:9], wanted[7:9], strict=True):
        written = ~cache.isnan()
        assert torch.equal(written, ~oracle.isnan())
        assert written.any(-1).any(-1).sum() == live.sum()
        # One short head may carry a whole unit of rounding, not the mean.
        assert relative_error(cache[written], oracle[written]) < tolerance(dtype) + 0.2 * unit_roundoff(dtype)
    values = args[0][live][:, (n + m) * d :]
    assert torch.equal(args[8].flatten(0, 1)[args[6][live].long()].flatten(1), values)


def test_a_nan_head_stays_in_its_head():
    args = inputs(1, 2, 1, 64, torch.float32)
    args[0][0, 3] = float("nan")
    q = qk_norm_rope_store_triton(*args)
    assert q[0, 0].isnan().all()
    assert q[0, 1].isfinite().all()
    assert args[7].isfinite().sum() == 64


def test_no_tokens_and_the_public_function():
    assert qk_norm_rope_store_triton(*inputs(0, 2, 1, 16, torch.float32)).shape == (0, 2, 16)
    one, two = inputs(4, 2, 1, 16, torch.float32), inputs(4, 2, 1, 16, torch.float32)
    torch.testing.assert_close(qk_norm_rope_store(*one), qk_norm_rope_store_reference(*two))
    torch.testing.assert_close(one[7], two[7], equal_nan=True)


@pytest.mark.gpu
def test_deterministic_and_the_same_under_pdl():
    args = inputs(64, 16, 8, 128, torch.bfloat16)
    args[0] = args[0].contiguous()
    assert_deterministic(lambda: qk_norm_rope_store_triton(*args))

    def chain(pdl):
        q = qk_norm_rope_store_triton(*args, pdl=pdl)
        return torch.cat((q.flatten(), args[7].nan_to_num().flatten(), args[8].nan_to_num().flatten()))

    assert_pdl_changes_nothing(chain, lambda: args[0].normal_())
