"""Page stores: exact copies to the right slots, and nothing else."""

import pytest
import torch

from engine.kernels.kv_store import store_kv, store_kv_reference, store_kv_triton
from tests.kernel_gates import DEVICE, DTYPES, randn


def inputs(rows, m, d, dtype, slot_dtype=torch.int32):
    packed = randn(rows, 3 * m * d, dtype=dtype, seed=rows + d)
    _, k, v = packed.split(m * d, dim=1)
    caches = [torch.full((6, 16, m, d), float("nan"), dtype=dtype, device=DEVICE) for _ in range(2)]
    slots = torch.randperm(96, generator=torch.Generator().manual_seed(0))[:rows]
    slots[1::3] = -1
    return k.unflatten(1, (m, d)), v.unflatten(1, (m, d)), caches, slots.to(slot_dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize(("m", "d"), [(3, 64), (8, 128), (1, 80), (9, 24)])
def test_stores_the_same_bits_as_the_twin(rows, m, d, dtype):
    k, v, caches, slots = inputs(rows, m, d, dtype)
    expected = [cache.clone() for cache in caches]
    store_kv_triton(k, v, *caches, slots)
    store_kv_reference(k, v, *expected, slots)
    for cache, wanted, x in zip(caches, expected, (k, v), strict=True):
        assert torch.equal(cache.nan_to_num(7), wanted.nan_to_num(7))
        written = ~cache.flatten(2).isnan().any(-1)
        assert written.sum() == (slots >= 0).sum()
        assert torch.equal(cache.flatten(0, 1)[slots[0].item()], x[0])


def test_slots_may_be_int64_and_the_cache_a_view_of_all_layers():
    k, v, _, slots = inputs(5, 2, 16, torch.float32, torch.int64)
    whole = torch.zeros(2, 3, 6, 16, 2, 16, device=DEVICE)
    store_kv_triton(k, v, whole[0, 1], whole[1, 1], slots)
    wanted = torch.zeros_like(whole)
    store_kv_reference(k, v, wanted[0, 1], wanted[1, 1], slots)
    assert torch.equal(whole, wanted)


def test_no_tokens_and_the_public_function():
    k, v, caches, slots = inputs(0, 2, 16, torch.float32)
    store_kv_triton(k, v, *caches, slots)
    assert caches[0].isnan().all()
    k, v, caches, slots = inputs(4, 2, 16, torch.float32)
    store_kv(k, v, *caches, slots)
    assert torch.equal(caches[1].flatten(0, 1)[slots[0].item()], v[0])


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31():
    cache = torch.empty(70_000, 64, 8, 128, dtype=torch.bfloat16, device=DEVICE)
    k = randn(1, 8, 128, dtype=torch.bfloat16, seed=0)
    slot = torch.tensor([70_000 * 64 - 1], device=DEVICE)
    store_kv_triton(k, k, cache, cache, slot)
    assert torch.equal(cache[-1, -1], k[0])
