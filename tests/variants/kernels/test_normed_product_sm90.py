"""The normed products of many rows for Hopper: what the compiler makes of them anywhere, their numbers on such a GPU.

On a Hopper GPU the tests of `norm_linear` and `gate_up_silu` run them as well, from 65 rows on.
"""

from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses import FakeTensorMode

from engine.kernels import _gluon
from engine.kernels.activation import silu_mul_triton
from engine.kernels.norm import rms_norm_triton
from tests.engine.kernels.test_prefill_sm90 import on_hopper, with_gluon
from tests.kernel_aot import AotCase, assemble, assert_fits, assert_recorded, compile_cases, tensor
from tests.kernel_gates import assert_deterministic, guard_outputs, randn, relative_error, strided
from variants import dispatch
from variants.kernels import normed_product, tile_table
from variants.kernels.gate_up_silu import norm_gate_up_silu_reference, norm_gate_up_silu_triton
from variants.kernels.norm_linear import norm_linear_reference, norm_linear_triton
from variants.kernels.normed_product_sm90 import (
    SHARED_N,
    TURNS_N,
    hopper_takes_product,
    share_tiles,
)  # fmt: skip
from variants.kernels.normed_product_sm90 import (
    normed_product_sm90 as launch,
)
from variants.kernels.tile_table import GpuTable, Trial, trying
from variants.kernels.tiles import Tile

EPS = 1e-6


def launch_on_nothing(block_n: int, silu: bool, bias: bool, dtype: torch.dtype) -> None:
    m, n, k = 2048, 6144, 4096
    x, weight, squares = tensor(m, k, dtype=dtype), tensor(n, k, dtype=dtype), tensor(m, 1, dtype=torch.float32)
    launch(x, None, weight, tensor(n, dtype=dtype) if bias else None, EPS, squares, silu, block_n=block_n)


def aot(block_n: int, silu: bool, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> AotCase:
    kernel, how = "gate_up_silu" if silu else "norm_linear", "turns" if block_n == TURNS_N else "shared"
    name = f"{kernel} sm90 {how}{' bias' if bias else ''} {'bf16' if dtype == torch.bfloat16 else 'fp16'}"
    return AotCase(name, f"_{kernel}_kernel_sm90", partial(launch_on_nothing, block_n, silu, bias, dtype))


CASES = [
    aot(TURNS_N, True), aot(SHARED_N, True), aot(TURNS_N, False), aot(TURNS_N, False, bias=True),
    aot(TURNS_N, True, bias=True, dtype=torch.float16),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


@with_gluon
def test_what_it_takes_is_recorded(compiled):
    assert_recorded(compiled)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_products_stay_in_flight(case, compiled, tmp_path):
    assert assemble(compiled[case.name], tmp_path).is_file()


def product(dtype=torch.bfloat16, rows=2048, k=1024, n=6144, device="cuda:0", pad=0, weight_pad=0):
    """(s, weight) without data, to be made in a FakeTensorMode."""
    s = torch.empty_strided((rows, k), (k + pad, 1), dtype=dtype, device=device)
    return s, torch.empty_strided((n, k), (k + weight_pad, 1), dtype=dtype, device=device)


@pytest.fixture
def as_on_hopper(monkeypatch):
    """Fake tensors on a GPU that this machine need not have."""
    monkeypatch.setattr(_gluon, "INTERPRETED", False)
    monkeypatch.setattr(_gluon, "is_hopper", lambda index: index == 0)
    with FakeTensorMode():
        yield


@with_gluon
def test_what_is_supported(as_on_hopper, monkeypatch):
    assert hopper_takes_product(*product())
    assert hopper_takes_product(*product(torch.float16, k=576, n=1000 * 16))
    assert not hopper_takes_product(*product(torch.float32))
    assert not hopper_takes_product(*product(k=1020))
    assert not hopper_takes_product(*product(n=1000))
    assert not hopper_takes_product(*product(pad=4))
    assert not hopper_takes_product(*product(device="cuda:1"))
    assert not hopper_takes_product(*product(device="cpu"))
    assert not hopper_takes_product(*product(weight_pad=8))
    monkeypatch.setattr(_gluon, "INTERPRETED", True)
    assert not hopper_takes_product(*product())


@with_gluon
def test_many_rows_pay_where_it_is_supported(as_on_hopper, monkeypatch):
    measured = GpuTable(fused_from_rows={"gate_up_silu 6144x512": 200})
    monkeypatch.setattr(dispatch, "measured_for", lambda x: measured)
    large = {"k": 4096, "n": 24576}

    def pays(rung, rows, **shape):
        return dispatch.pays_here(rung, *product(rows=rows, **shape))

    assert [pays("silu_epilogue", rows) for rows in (32, 33, 1023, 1024, 2048)] == [True, False, False, True, True]
    assert [pays("silu_epilogue", rows, **large) for rows in (16, 17, 511, 512)] == [True, False, False, True]
    assert [pays("silu_epilogue", rows, k=512) for rows in (33, 199, 200)] == [False, False, True]
    assert [pays("norm_linear", rows, **large) for rows in (2048, 4096)] == [False, True]
    assert not pays("residual_epilogue", 2048, **large)
    assert not pays("silu_epilogue", 2048, device="cuda:1")


@with_gluon
def test_launchers_take_it_from_65_rows_on(as_on_hopper, monkeypatch):
    monkeypatch.setattr(normed_product, "normed_product_sm90", lambda *args: args[-2])
    monkeypatch.setattr(tile_table, "measured_for", lambda x: GpuTable())
    s, weight = product(rows=65)
    assert norm_linear_triton(s, None, weight, None, EPS) is False
    assert norm_gate_up_silu_triton(s, None, weight, None, EPS) is True
    # But for a tile that was measured there, or is on trial.
    tile = Tile("wide", 64, 64, 64, 4, 4)
    monkeypatch.setattr(normed_product, "descriptors", Mock(side_effect=LookupError("of a tile")))
    monkeypatch.setattr(normed_product, "add_squares_triton", lambda *args: (s, s))
    with trying(Trial({"norm_linear 6144x1024": tile, "gate_up_silu 6144x1024": tile})):
        for launcher in (norm_linear_triton, norm_gate_up_silu_triton):
            with pytest.raises(LookupError, match="of a tile"):
                launcher(s, None, weight, None, EPS)


def test_who_shares_a_tile():
    assert share_tiles(128, 1024, silu=True)
    assert not share_tiles(129, 1024, silu=True)
    assert share_tiles(2048, 4096, silu=True)
    assert not share_tiles(8192, 1024, silu=True)
    assert not share_tiles(1024, 4096, silu=True)
    assert not share_tiles(8192, 4096, silu=False)


# Fewer and more steps than stages; one tile, and several a program; edges inside a tile, of rows and of columns.
SHAPES = [(1, 64, 64), (128, 64, 128), (129, 136, 1000), (300, 1024, 6144), (200, 896, 9728), (2500, 576, 3072)]


@on_hopper
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("block_n", [TURNS_N, SHARED_N])
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matches_float64_and_beats_the_unfused_path(m, k, n, silu, block_n, dtype, bias, monkeypatch):
    n = n // 16 * 16
    x, residual = (strided(randn(m, k, dtype=dtype, seed=seed)) for seed in (0, 1))
    weight = randn(n, k, dtype=dtype, seed=2, scale=0.05)
    bias_N = randn(n, dtype=dtype, seed=3) if bias else None
    guarded = guard_outputs(monkeypatch)
    y, s = launch(x, residual, weight, bias_N, EPS, None, silu, block_n=block_n)
    guarded.check()
    monkeypatch.undo()
    assert torch.equal(s, x + residual)
    reference = norm_gate_up_silu_reference if silu else norm_linear_reference
    expected = reference(s.double(), None, weight.double(), bias_N.double() if bias else None, EPS)[0]
    unfused = torch.nn.functional.linear(rms_norm_triton(s, None, EPS), weight, bias_N)
    if silu:
        unfused = silu_mul_triton(unfused)
    assert relative_error(y, expected) < 2.5e-3
    assert relative_error(y, expected) <= 1.05 * relative_error(unfused, expected)


@on_hopper
@pytest.mark.parametrize("block_n", [TURNS_N, SHARED_N])
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
def test_special_rows_stay_in_their_row(silu, block_n):
    x, weight = randn(300, 1024, dtype=torch.bfloat16, seed=4), randn(2048, 1024, dtype=torch.bfloat16, seed=5)
    x[0], x[1, 7], x[130, 8], x[131, 9] = 0, float("nan"), float("inf"), 1e4
    y, _ = launch(x, None, weight, None, EPS, None, silu, block_n=block_n)
    assert y[1].isnan().all()
    rest = torch.tensor([i for i in range(300) if i not in (1, 130)])
    alone, _ = launch(x[rest], None, weight, None, EPS, None, silu, block_n=block_n)
    assert torch.equal(y[rest], alone)


@on_hopper
def test_sums_of_squares_may_come_in_parts():
    x, weight = randn(300, 1024, dtype=torch.bfloat16, seed=6), randn(2048, 1024, dtype=torch.bfloat16, seed=7)
    parts = torch.stack([part.float().square().sum(1) for part in x.split(256, dim=1)], dim=1)
    y, s = launch(x, None, weight, None, EPS, parts, silu=False)
    assert s is x
    expected = norm_linear_reference(x.double(), None, weight.double(), None, EPS)[0]
    assert relative_error(y, expected) < 2.5e-3


@on_hopper
@pytest.mark.parametrize("block_n", [TURNS_N, SHARED_N])
def test_deterministic(block_n):
    x, weight = randn(1000, 576, dtype=torch.bfloat16, seed=8), randn(3072, 576, dtype=torch.bfloat16, seed=9)
    assert_deterministic(lambda: launch(x, None, weight, None, EPS, None, True, block_n=block_n)[0])


@on_hopper
def test_no_rows():
    weight = randn(64, 64, dtype=torch.bfloat16, seed=1)
    assert launch(weight[:0], None, weight, None, EPS, None, silu=True)[0].shape == (0, 32)
