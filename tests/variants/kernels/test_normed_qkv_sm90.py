"""The QKV product that hands out whole heads: what the compiler makes of it, and its numbers on a Hopper GPU."""

from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from engine.kernels import _gluon
from engine.kernels.norm import rms_norm_triton
from tests.engine.kernels.test_prefill_sm90 import on_hopper, with_gluon
from tests.kernel_aot import AotCase, assemble, assert_fits, assert_recorded, compile_cases, tensor
from tests.kernel_gates import assert_deterministic, guard_outputs, randn, relative_error, strided
from tests.variants.kernels.test_aot import qkv_inputs
from variants import dispatch
from variants.kernels.norm_linear import norm_linear_reference
from variants.kernels.normed_qkv_sm90 import hopper_takes_whole_heads, normed_qkv_sm90
from variants.kernels.qkv_post import qk_norm_rope_store_reference, qk_norm_rope_store_triton
from variants.kernels.tile_table import Trial, trying

EPS = 1e-6
D = 128
# Sixteen bytes of a tile's address and the store's predicate: they are read once a tile.
SPILLED_BYTES = 16


def launch_on_nothing(norm: bool, bias: bool, dtype: torch.dtype) -> None:
    m, k, (_, q_norm, k_norm, *rest) = 2048, 1024, qkv_inputs(2048, 8, 2, D, norm, dtype)
    weight, squares = tensor(32 * D, k, dtype=dtype), tensor(m, 1, dtype=torch.float32)
    bias_O = tensor(32 * D, dtype=dtype) if bias else None
    normed_qkv_sm90(tensor(m, k, dtype=dtype), None, weight, bias_O, squares, q_norm, k_norm, *rest, 16, EPS)


def aot(norm: bool, bias: bool, dtype: torch.dtype = torch.bfloat16) -> AotCase:
    name = f"norm_qkv sm90{' norm' * norm}{' bias' * bias} {'bf16' if dtype == torch.bfloat16 else 'fp16'}"
    return AotCase(name, "_norm_linear_kernel_qkv_post_kernel_sm90", partial(launch_on_nothing, norm, bias, dtype))


CASES = [aot(norm=True, bias=False), aot(norm=False, bias=True), aot(norm=False, bias=False, dtype=torch.float16)]


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90_and_keeps_products_in_flight(case, compiled, tmp_path):
    assert_fits(compiled[case.name], spilled_bytes=SPILLED_BYTES)
    assert assemble(compiled[case.name], tmp_path).is_file()


@with_gluon
def test_what_it_takes_is_recorded(compiled):
    assert_recorded(compiled)


@with_gluon
def test_takes_heads_of_a_tile_and_pays_with_many_rows_and_few_weights(monkeypatch):
    monkeypatch.setattr(_gluon, "INTERPRETED", False)
    monkeypatch.setattr(_gluon, "is_hopper", lambda index: True)
    with FakeTensorMode():

        def fits(d=128, cache_dtype=torch.bfloat16, k=1024):
            s, weight = (
                torch.empty(8, k, dtype=torch.bfloat16, device="cuda"),
                torch.empty(32 * d, k, dtype=torch.bfloat16, device="cuda"),
            )
            return hopper_takes_whole_heads(s, weight, torch.empty(2, 64, 8, d, dtype=cache_dtype, device="cuda"))

        assert fits()
        assert not fits(d=64)
        assert not fits(cache_dtype=torch.float16)
        assert not fits(k=1020)
    rows = [torch.empty(rows, 1, device="meta") for rows in (1023, 1024)]
    small, large = (torch.empty(n, 1024, device="meta") for n in (4096, 32768))
    assert [dispatch.whole_heads_pay(x, small) for x in rows] == [False, True]
    assert [dispatch.whole_heads_pay(x, large) for x in rows] == [False, False]
    with trying(Trial(fused={"whole_heads": True})):
        assert dispatch.whole_heads_pay(rows[0], large)


def inputs(m, n, kv, k, norm=True, bias=False, dtype=torch.bfloat16, block_size=64):
    """The arguments up to eps, of `m` rows; every seventh is padding."""
    residual, x = (strided(randn(m, k, dtype=dtype, seed=seed)) for seed in (0, 1))
    weight = randn((n + 2 * kv) * D, k, dtype=dtype, seed=2, scale=0.05)
    bias_O = randn((n + 2 * kv) * D, dtype=dtype, seed=3) if bias else None
    norms = [randn(D, dtype=dtype, seed=seed) if norm else None for seed in (4, 5)]
    angles = torch.arange(4000)[:, None] / 10_000.0 ** (torch.arange(0, D, 2) / D)
    positions = torch.arange(m, dtype=torch.int32) * 7 % 4000
    pages = -(-m // block_size) + 2
    slots = torch.randperm(pages * block_size, generator=torch.Generator().manual_seed(0))[:m].int()
    positions[1::7], slots[1::7] = -1, -1
    caches = [torch.full((pages, block_size, kv, D), float("nan"), dtype=dtype, device="cuda") for _ in range(2)]
    tables = [angles.cos().cuda(), angles.sin().cuda()]
    return [x, residual, weight, bias_O, None, *norms, *tables, positions.cuda(), slots.cuda(), *caches, n, EPS]


def apart(args, linear, after):
    """(q, caches) of the product and of what comes after it, each by its own function."""
    x, residual, weight, bias_O, _, q_norm, k_norm, cos, sin, positions, slots, k_cache, v_cache, n, eps = args
    caches = [k_cache.clone(), v_cache.clone()]
    qkv = linear(x + residual, weight, bias_O)
    return after(qkv, q_norm, k_norm, cos, sin, positions, slots, *caches, n, k_cache.shape[2], D, eps), caches


def doubled(args):
    """The same in float64, but for the tables."""
    return [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() and i not in (7, 8) else x
        for i, x in enumerate(args)
    ]


# One tile, edges inside a tile, several tiles a program, several heads a key head, one key head.
SHAPES = [(1, 2, 1, 64), (129, 4, 2, 136), (300, 16, 8, 1024), (1000, 7, 1, 512), (2500, 16, 8, 576)]


@on_hopper
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize(("norm", "bias"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("m", "n", "kv", "k"), SHAPES)
def test_matches_float64_and_beats_what_it_replaces(m, n, kv, k, dtype, norm, bias, block_size, monkeypatch):
    args = inputs(m, n, kv, k, norm, bias, dtype, block_size)
    wide = doubled(args)
    # The sum is what both round.
    wide[0], wide[1] = (args[0] + args[1]).double(), torch.zeros_like(wide[1])
    oracle, oracle_caches = apart(
        wide, lambda s, w, b: norm_linear_reference(s, None, w, b, EPS)[0], qk_norm_rope_store_reference
    )
    unfused, unfused_caches = apart(
        args, lambda s, w, b: torch.nn.functional.linear(rms_norm_triton(s, None, EPS), w, b), qk_norm_rope_store_triton
    )
    guarded = guard_outputs(monkeypatch)
    q, s = normed_qkv_sm90(*args)
    guarded.check()
    monkeypatch.undo()
    assert torch.equal(s, args[0] + args[1])
    live = args[10] >= 0
    assert relative_error(q[live], oracle[live]) < 2.5e-3
    assert relative_error(q[live], oracle[live]) <= 1.05 * relative_error(unfused[live], oracle[live])
    for mine, expected, other in zip(args[11:13], oracle_caches, unfused_caches, strict=True):
        written = ~expected.isnan()
        assert torch.equal(~mine.isnan(), written)
        error = relative_error(mine[written], expected[written])
        assert error < 2.5e-3
        assert error <= 1.05 * relative_error(other[written], expected[written])


@on_hopper
def test_special_rows_stay_in_their_row():
    args = inputs(300, 4, 2, 1024)
    args[1].zero_()
    args[0][0], args[0][2, 7], args[0][130, 8], args[0][131, 9] = 0, float("nan"), float("inf"), 1e4
    q, _ = normed_qkv_sm90(*args)
    assert q[2].isnan().all()
    assert q[130].isnan().any()
    rest = [row for row in range(300) if row not in (2, 130)]
    assert q[rest].isfinite().all()


@on_hopper
def test_deterministic():
    args = inputs(1000, 16, 8, 576)

    def launch():
        q, _ = normed_qkv_sm90(*args)
        return torch.cat((q.flatten(), args[11].nan_to_num().flatten(), args[12].nan_to_num().flatten()))

    assert_deterministic(launch)


@on_hopper
def test_no_rows():
    assert normed_qkv_sm90(*inputs(0, 4, 2, 64))[0].shape == (0, 4, D)
