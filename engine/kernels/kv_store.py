"""Store a step's keys and values to their pages.

    cache[slot // block_size, slot % block_size] = row, for every slot >= 0

Shape suffixes: T tokens, M key and value heads, D head dim. A cache is [num_blocks, block_size, M, D], last dimension
contiguous. Slot -1 marks a padded row, which is skipped.
"""

from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, tl, triton

HEADS_PER_PROGRAM = 8


@triton.jit
def _store_kv_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, num_heads, D,
    k_stride_t, k_stride_h, v_stride_t, v_stride_h, cache_stride_block, cache_stride_pos, cache_stride_h,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (t, j): the j-th group of HEADS heads of token t."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (heads < num_heads) & (d < D) & (slot >= 0)
    page, pos = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    target = page * cache_stride_block + pos * cache_stride_pos + heads * cache_stride_h + d
    k = tl.load(k_ptr + token * k_stride_t + heads * k_stride_h + d, mask=mask)
    v = tl.load(v_ptr + token * v_stride_t + heads * v_stride_h + d, mask=mask)
    tl.store(k_cache_ptr + target, k, mask=mask)
    tl.store(v_cache_ptr + target, v, mask=mask)


def store_kv_triton(k_TMD: Tensor, v_TMD: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor) -> None:
    """Launcher of `_store_kv_kernel`; see `store_kv`."""
    num_tokens, num_heads, d = k_TMD.shape
    if num_tokens == 0:
        return
    _store_kv_kernel[(num_tokens, cdiv(num_heads, HEADS_PER_PROGRAM))](
        k_TMD, v_TMD, k_cache, v_cache, slots_T, num_heads, d,
        *k_TMD.stride()[:2], *v_TMD.stride()[:2], *k_cache.stride()[:3],
        BLOCK_SIZE=k_cache.shape[1], HEADS=HEADS_PER_PROGRAM, BLOCK_D=next_power_of_2(d), num_warps=4,
    )  # fmt: skip


def store_kv_reference(k_TMD: Tensor, v_TMD: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor) -> None:
    """Plain-PyTorch twin of `store_kv_triton`."""
    rows = (slots_T >= 0).nonzero().squeeze(1)
    slots = slots_T[rows].long()
    page, pos = slots // k_cache.shape[1], slots % k_cache.shape[1]
    k_cache[page, pos] = k_TMD[rows]
    v_cache[page, pos] = v_TMD[rows]


def store_kv(k_TMD: Tensor, v_TMD: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor) -> None:
    """Write token t's keys and values to slot `slots_T[t]`; both caches have the same strides."""
    (store_kv_triton if k_TMD.is_cuda else store_kv_reference)(k_TMD, v_TMD, k_cache, v_cache, slots_T)
