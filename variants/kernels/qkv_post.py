"""Everything between the QKV projection and attention: per-head norm, RoPE and the store to the pages, in one kernel.

    q = rope(norm(q)) to a new tensor;  k = rope(norm(k)) and v to slot slots[t] of their caches

Shape suffixes: T tokens, O packed outputs (N query heads, then M key heads, then M value heads, of D each), P
positions of the tables (fp32). A norm is skipped where its weight is None. RoPE is half-split, as in
engine/kernels/rope.py, the caches are as in engine/kernels/kv_store.py. Arithmetic in fp32, one rounding for all of
it.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, pdl_options, tl, triton
from engine.kernels.kv_store import store_kv_reference
from engine.kernels.norm import rms_norm_reference
from engine.kernels.rope import rope_reference

# As many as decode_qkv_attention.py has: tiles of one shape sum in one order and store the same bits.
HEADS_PER_PROGRAM = 16


@triton.jit
def load_halves(x, mask, HALF: tl.constexpr):
    """Both halves, in fp32, of the heads whose first halves `x` points to; zero outside the mask."""
    return tl.load(x, mask=mask, other=0.0).to(tl.float32), tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_rotation(gamma_ptr, cos_ptr, sin_ptr, row, d, HALF: tl.constexpr):
    """(cos, sin, gamma's first half, its second half) for `norm_rotate`; without a weight the gammas go unused."""
    live = d < HALF
    cos = tl.load(cos_ptr + row * HALF + d, mask=live, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + d, mask=live, other=0.0)
    gamma1, gamma2 = cos, sin
    if gamma_ptr is not None:
        gamma1, gamma2 = load_halves(gamma_ptr + d, live, HALF)
    return cos, sin, gamma1, gamma2


@triton.jit
def norm_rotate(x1, x2, cos, sin, gamma1, gamma2, eps, HALF: tl.constexpr, NORM: tl.constexpr):
    """Both halves of heads, normed if NORM and rotated."""
    if NORM:
        scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, axis=1, keep_dims=True) / (2 * HALF) + eps)
        x1, x2 = x1 * scale * gamma1, x2 * scale * gamma2
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@triton.jit
def _norm_rotate_store(
    x, y, gamma_ptr, cos_ptr, sin_ptr, row, d, mask, eps, HALF: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Norm (if there is a weight) and rotate the heads at `x`; store them at `y`. Pointers are to first halves."""
    x1, x2 = load_halves(x, mask, HALF)
    cos, sin, gamma1, gamma2 = load_rotation(gamma_ptr, cos_ptr, sin_ptr, row, d, HALF)
    y1, y2 = norm_rotate(x1, x2, cos, sin, gamma1, gamma2, eps, HALF, gamma_ptr is not None)
    tl.store(y, y1.to(DTYPE), mask=mask)
    tl.store(y + HALF, y2.to(DTYPE), mask=mask)


@triton.jit
def _qkv_post_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_ptr, k_cache_ptr, v_cache_ptr, N, M,
    qkv_stride, cache_stride_block, cache_stride_pos, cache_stride_h, eps,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (t, j): the j-th group of HEADS heads of token t, queries first, then keys, then values."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_groups, kv_groups = tl.cdiv(N, HEADS), tl.cdiv(M, HEADS)
    d, h = tl.arange(0, BLOCK_HALF)[None, :], tl.arange(0, HEADS)[:, None]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # A padded row has a negative position, and a slot of -1 that keeps it out of the caches.
    row = tl.maximum(tl.load(positions_ptr + token), 0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    page = slot // BLOCK_SIZE * cache_stride_block + slot % BLOCK_SIZE * cache_stride_pos
    x = qkv_ptr + token * qkv_stride + d
    if group < q_groups:
        heads = group * HEADS + h
        _norm_rotate_store(
            x + heads * 2 * HALF, q_ptr + (token * N + heads) * 2 * HALF + d, q_norm_ptr, cos_ptr, sin_ptr, row, d,
            (d < HALF) & (heads < N), eps, HALF, q_ptr.dtype.element_ty,
        )  # fmt: skip
    elif group < q_groups + kv_groups:
        heads = (group - q_groups) * HEADS + h
        _norm_rotate_store(
            x + (N + heads) * 2 * HALF, k_cache_ptr + page + heads * cache_stride_h + d, k_norm_ptr, cos_ptr, sin_ptr,
            row, d, (d < HALF) & (heads < M) & (slot >= 0), eps, HALF, k_cache_ptr.dtype.element_ty,
        )  # fmt: skip
    else:
        heads = (group - q_groups - kv_groups) * HEADS + h
        mask = (d < HALF) & (heads < M) & (slot >= 0)
        source, target = x + (N + M + heads) * 2 * HALF, v_cache_ptr + page + heads * cache_stride_h + d
        tl.store(target, tl.load(source, mask=mask), mask=mask)
        tl.store(target + HALF, tl.load(source + HALF, mask=mask), mask=mask)


def qk_norm_rope_store_triton(
    qkv_TO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_T: Tensor, slots_T: Tensor, k_cache: Tensor, v_cache: Tensor, num_heads: int, num_kv_heads: int,
    head_dim: int, eps: float, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Launcher of `_qkv_post_kernel`; see `qk_norm_rope_store`."""
    num_tokens, half = qkv_TO.shape[0], head_dim // 2
    q = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv_TO.dtype, device=qkv_TO.device)
    if num_tokens:
        groups = cdiv(num_heads, HEADS_PER_PROGRAM) + 2 * cdiv(num_kv_heads, HEADS_PER_PROGRAM)
        _qkv_post_kernel[(num_tokens, groups)](
            qkv_TO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_T, slots_T, q, k_cache, v_cache,
            num_heads, num_kv_heads, qkv_TO.stride(0), *k_cache.stride()[:3], eps,
            HALF=half, BLOCK_HALF=next_power_of_2(half), BLOCK_SIZE=k_cache.shape[1], HEADS=HEADS_PER_PROGRAM,
            num_warps=4, **pdl_options(pdl),
        )  # fmt: skip
    return q


def qk_norm_rope_store_reference(
    qkv_TO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_T: Tensor, slots_T: Tensor, k_cache: Tensor, v_cache: Tensor, num_heads: int, num_kv_heads: int,
    head_dim: int, eps: float, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Plain-PyTorch twin of `qk_norm_rope_store_triton`; float64 inputs make it the oracle."""
    compute = torch.promote_types(qkv_TO.dtype, torch.float32)
    heads = qkv_TO.unflatten(-1, (num_heads + 2 * num_kv_heads, head_dim))
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q, k = q.to(compute), k.to(compute)
    q = q if q_norm_D is None else rms_norm_reference(q, q_norm_D, eps)
    k = k if k_norm_D is None else rms_norm_reference(k, k_norm_D, eps)
    q, k = rope_reference(q, k, positions_T, cos_PD2, sin_PD2)
    store_kv_reference(k.to(k_cache.dtype), v, k_cache, v_cache, slots_T)
    return q.to(qkv_TO.dtype)


def qk_norm_rope_store(
    qkv_TO: Tensor, q_norm_D: Tensor | None, k_norm_D: Tensor | None, cos_PD2: Tensor, sin_PD2: Tensor,
    positions_T: Tensor, slots_T: Tensor, k_cache: Tensor, v_cache: Tensor, num_heads: int, num_kv_heads: int,
    head_dim: int, eps: float, pdl: bool = False,
) -> Tensor:  # fmt: skip
    """Queries [T, N, D], contiguous; keys and values go to their slots, those of padded rows (slot -1) nowhere."""
    return (qk_norm_rope_store_triton if qkv_TO.is_cuda else qk_norm_rope_store_reference)(
        qkv_TO, q_norm_D, k_norm_D, cos_PD2, sin_PD2, positions_T, slots_T, k_cache, v_cache, num_heads, num_kv_heads,
        head_dim, eps, pdl,
    )  # fmt: skip
