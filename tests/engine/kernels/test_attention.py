"""Both attention kernels against their float64 twins; every key that must not be read is NaN."""

import itertools

import pytest
import torch

from engine.kernels.decode_attention import (
    MAX_SPLITS,
    MIN_SPLIT_TOKENS,
    PROGRAMS_PER_SM,
    num_splits,
    paged_decode_attention,
    paged_decode_attention_reference,
    paged_decode_attention_triton,
)  # fmt: skip
from engine.kernels.prefill_attention import (
    prefill_tile,
    varlen_prefill_attention,
    varlen_prefill_attention_reference,
    varlen_prefill_attention_triton,
)  # fmt: skip
from tests.kernel_gates import (
    DEVICE,
    DTYPES,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    tolerance,
    unit_roundoff,
)  # fmt: skip

HEADS = [(9, 3, 64), (4, 2, 128), (5, 1, 80), (2, 2, 96)]

# The interpreter computes NaN and infinities with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def pages(lens, m, d, block_size, dtype, spare=1):
    """Caches whose unused slots are NaN, and tables in shuffled order with unused entries far out of range."""
    counts = [-(-length // block_size) for length in lens]
    order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(1)).tolist()
    tables = torch.full((len(lens), max(counts, default=0) + spare), 2**30, dtype=torch.int32)
    k, v = (torch.full((len(order), block_size, m, d), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2))
    for b, length in enumerate(lens):
        for p in range(counts[b]):
            tables[b, p] = page = order.pop()
            rows = min(block_size, length - p * block_size)
            k[page, :rows] = randn(rows, m, d, dtype=dtype, seed=100 * b + p)
            v[page, :rows] = randn(rows, m, d, dtype=dtype, seed=7777 + 100 * b + p)
    return k, v, tables.to(DEVICE), torch.tensor(lens, dtype=torch.int32, device=DEVICE)


def attention_tolerance(dtype):
    """The result's rounding, and the probabilities': independent, each at most 0.6 u."""
    return 1.2 * unit_roundoff(dtype) + tolerance(torch.float32, sums=64) * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_size", "splits"), [(16, 3), (64, 1), (64, None)])
@pytest.mark.parametrize("heads", HEADS)
def test_decode_matches_float64(heads, block_size, splits, dtype, monkeypatch):
    n, m, d = heads
    lens = [1, 0, 150, 64, 129]
    k, v, tables, context_lens = pages(lens, m, d, block_size, dtype)
    q = randn(len(lens), (n + 2 * m) * d, dtype=dtype, seed=3)[:, : n * d].unflatten(1, (n, d))
    oracle = paged_decode_attention_reference(q.double(), k.double(), v.double(), tables, context_lens, d**-0.5)
    guarded = guard_outputs(monkeypatch)
    o = paged_decode_attention_triton(q, k, v, tables, context_lens, d**-0.5, splits=splits)
    guarded.check()
    assert torch.equal(o[1], torch.zeros_like(o[1]))
    assert relative_error(o, oracle) < attention_tolerance(dtype)


@pytest.mark.parametrize(("window", "splits"), list(itertools.product([1, 37, 64, 1000], [1, 4])))
def test_decode_slides_its_window(window, splits):
    lens = [130, 64, 3]
    k, v, tables, context_lens = pages(lens, 2, 16, 32, torch.float32)
    q = randn(3, 6, 16, dtype=torch.float32, seed=5)
    args = (tables, context_lens, 0.25, window)
    oracle = paged_decode_attention_reference(q.double(), k.double(), v.double(), *args)
    o = paged_decode_attention_triton(q, k, v, *args, splits=splits)
    assert relative_error(o, oracle) < attention_tolerance(torch.float32)


def test_decode_keeps_nan_and_outliers_in_their_sequence():
    k, v, tables, context_lens = pages([70, 70, 70], 1, 16, 16, torch.float32)
    q = randn(3, 2, 16, dtype=torch.float32, seed=6)
    oracle = paged_decode_attention_reference(q.double(), k.double(), v.double(), tables, context_lens, 0.25)
    q[1] = float("nan")
    q[2] *= 1e4
    for splits in (1, 2):
        o = paged_decode_attention_triton(q, k, v, tables, context_lens, 0.25, splits=splits)
        assert relative_error(o[0], oracle[0]) < attention_tolerance(torch.float32)
        assert o[1].isnan().all()
        assert o[2].isfinite().all()


def test_the_number_of_splits_fits_the_grid_and_the_longest_context():
    assert num_splits(batch=1, num_kv_heads=8, max_context=2 * MIN_SPLIT_TOKENS, sms=132) == 1
    assert num_splits(batch=1, num_kv_heads=8, max_context=9 * MIN_SPLIT_TOKENS, sms=132) == 9
    assert num_splits(batch=1, num_kv_heads=8, max_context=131072, sms=132) == MAX_SPLITS
    assert num_splits(batch=16, num_kv_heads=8, max_context=4096, sms=132) == PROGRAMS_PER_SM * 132 // 128
    assert num_splits(batch=512, num_kv_heads=32, max_context=4096, sms=132) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "block_size"), list(zip(HEADS, [64, 128, 16, 64], strict=True)))
def test_prefill_matches_float64(heads, block_size, dtype, monkeypatch):
    n, m, d = heads
    query_lens, lens = [70, 1, 5, 0, 130], [70, 90, 133, 20, 131]
    k, v, tables, context_lens = pages(lens, m, d, block_size, dtype)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32, device=DEVICE)
    q = randn(sum(query_lens), (n + 2 * m) * d, dtype=dtype, seed=3)[:, : n * d].unflatten(1, (n, d))
    args = (tables, context_lens, cu_seqlens, max(query_lens), d**-0.5)
    oracle = varlen_prefill_attention_reference(q.double(), k.double(), v.double(), *args)
    guarded = guard_outputs(monkeypatch)
    o = varlen_prefill_attention_triton(q, k, v, *args)
    guarded.check()
    assert relative_error(o, oracle) < attention_tolerance(dtype)


@pytest.mark.parametrize("window", [1, 37, 64, 1000])
def test_prefill_slides_its_window(window):
    k, v, tables, context_lens = pages([200, 66], 1, 16, 16, torch.float32)
    cu_seqlens = torch.tensor([0, 150, 216], dtype=torch.int32, device=DEVICE)
    q = randn(216, 2, 16, dtype=torch.float32, seed=5)
    args = (tables, context_lens, cu_seqlens, 150, 0.25, window)
    oracle = varlen_prefill_attention_reference(q.double(), k.double(), v.double(), *args)
    o = varlen_prefill_attention_triton(q, k, v, *args)
    assert relative_error(o, oracle) < attention_tolerance(torch.float32)


def test_prefill_of_one_token_equals_decode():
    k, v, tables, context_lens = pages([33, 90], 2, 16, 16, torch.float32)
    q = randn(2, 4, 16, dtype=torch.float32, seed=8)
    cu_seqlens = torch.arange(3, dtype=torch.int32, device=DEVICE)
    decode = paged_decode_attention_triton(q, k, v, tables, context_lens, 0.25)
    prefill = varlen_prefill_attention_triton(q, k, v, tables, context_lens, cu_seqlens, 1, 0.25)
    assert relative_error(prefill, decode) < attention_tolerance(torch.float32)


def test_prefill_keeps_nan_queries_in_their_row():
    k, v, tables, context_lens = pages([40], 1, 16, 16, torch.float32)
    q = randn(40, 1, 16, dtype=torch.float32, seed=9)
    args = (tables, context_lens, torch.tensor([0, 40], dtype=torch.int32, device=DEVICE), 40, 0.25)
    clean = varlen_prefill_attention_triton(q, k, v, *args)
    q[7] = float("nan")
    o = varlen_prefill_attention_triton(q, k, v, *args)
    assert o[7].isnan().all()
    rows = torch.arange(40, device=DEVICE) != 7
    assert torch.equal(o[rows], clean[rows])


@pytest.mark.parametrize(
    ("max_query", "d", "block_size"), list(itertools.product([1, 64, 65, 4096], [64, 96, 128, 256], [16, 64, 256]))
)
def test_prefill_tiles_stay_inside_a_page(max_query, d, block_size):
    block_m, keys, warps, _ = prefill_tile(max_query, d, block_size)
    assert block_size % keys == 0
    assert block_m // 16 >= warps


def test_no_rows():
    k, v, tables, context_lens = pages([], 1, 16, 16, torch.float32)
    q = torch.empty(0, 2, 16, device=DEVICE)
    assert paged_decode_attention_triton(q, k, v, tables, context_lens, 1.0).shape == (0, 2, 16)
    cu_seqlens = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    assert varlen_prefill_attention_triton(q, k, v, tables, context_lens, cu_seqlens, 0, 1.0).shape == (0, 2, 16)


def test_twins_match_torch_attention():
    k, v, tables, context_lens = pages([40, 40], 2, 16, 16, torch.float32)
    q = randn(80, 4, 16, dtype=torch.float32, seed=10)
    cu_seqlens = torch.tensor([0, 40, 80], dtype=torch.int32, device=DEVICE)
    dense_k, dense_v = (x[tables[:, :3].long()].flatten(1, 2)[:, :40].transpose(1, 2) for x in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.unflatten(0, (2, 40)).transpose(1, 2), dense_k, dense_v, is_causal=True, scale=0.25, enable_gqa=True
    )  # fmt: skip
    o = varlen_prefill_attention(q, k, v, tables, context_lens, cu_seqlens, 40, 0.25)
    torch.testing.assert_close(o.unflatten(0, (2, 40)).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    last = paged_decode_attention(q[39::40].contiguous(), k, v, tables, context_lens, 0.25)
    torch.testing.assert_close(last, expected[:, :, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 8])
def test_decode_is_deterministic_and_the_same_under_pdl(splits):
    k, v, tables, context_lens = pages([1024, 1000, 17, 0], 8, 128, 64, torch.bfloat16)
    q = randn(4, 16, 128, dtype=torch.bfloat16, seed=11)
    assert_deterministic(lambda: paged_decode_attention_triton(q, k, v, tables, context_lens, 0.1, splits=splits))

    def chain(pdl):
        y = q
        for _ in range(4):
            y = paged_decode_attention_triton(y, k, v, tables, context_lens, 0.1, pdl=pdl, splits=splits)
        return y

    assert_pdl_changes_nothing(chain, lambda: q.normal_())
