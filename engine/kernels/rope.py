"""Rotary position embedding of queries and keys, in one launch.

    (y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of a head (the NeoX and Hugging Face convention)

Shape suffixes: T tokens, N query heads, M key heads, D head dim, P positions of the tables (fp32). Arithmetic in
fp32, one rounding.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, tl, triton

HEADS_PER_PROGRAM = 8


@triton.jit
def _rotate_heads(
    x_ptr, y_ptr, token, head, num_heads, x_stride_t, x_stride_h, y_stride_t, y_stride_h, cos, sin,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Rotate HEADS heads of one token, from `head` on."""
    d = tl.arange(0, BLOCK_HALF)[None, :]
    heads = head + tl.arange(0, HEADS)[:, None]
    mask = (heads < num_heads) & (d < HALF)
    x = x_ptr + token * x_stride_t + heads * x_stride_h + d
    y = y_ptr + token * y_stride_t + heads * y_stride_h + d
    x1 = tl.load(x, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(y, (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y + HALF, (x2 * cos + x1 * sin).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rope_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, positions_ptr, cos_ptr, sin_ptr, num_q_heads, num_k_heads,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, q_out_stride_t, q_out_stride_h, k_out_stride_t, k_out_stride_h,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Program (t, j): the j-th group of HEADS heads of token t, queries first."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_HALF)[None, :]
    # A padded row has a negative position; its result is never read.
    row = tl.maximum(tl.load(positions_ptr + token), 0).to(tl.int64) * HALF
    cos = tl.load(cos_ptr + row + d, mask=d < HALF, other=0.0)
    sin = tl.load(sin_ptr + row + d, mask=d < HALF, other=0.0)
    group = tl.program_id(1)
    q_groups = tl.cdiv(num_q_heads, HEADS)
    if group < q_groups:
        _rotate_heads(
            q_ptr, q_out_ptr, token, group * HEADS, num_q_heads, q_stride_t, q_stride_h, q_out_stride_t, q_out_stride_h,
            cos, sin, HALF, BLOCK_HALF, HEADS,
        )  # fmt: skip
    else:
        head = (group - q_groups) * HEADS
        _rotate_heads(
            k_ptr, k_out_ptr, token, head, num_k_heads, k_stride_t, k_stride_h, k_out_stride_t, k_out_stride_h,
            cos, sin, HALF, BLOCK_HALF, HEADS,
        )  # fmt: skip


def rope_triton(
    q_TND: Tensor, k_TMD: Tensor, positions_T: Tensor, cos_PD2: Tensor, sin_PD2: Tensor
) -> tuple[Tensor, Tensor]:
    """Launcher of `_rope_kernel`; see `rope`."""
    num_tokens, num_q, d = q_TND.shape
    num_k = k_TMD.shape[1]
    q_out = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    k_out = torch.empty(k_TMD.shape, dtype=k_TMD.dtype, device=k_TMD.device)
    if num_tokens:
        heads = HEADS_PER_PROGRAM
        _rope_kernel[(num_tokens, cdiv(num_q, heads) + cdiv(num_k, heads))](
            q_TND, k_TMD, q_out, k_out, positions_T, cos_PD2.contiguous(), sin_PD2.contiguous(), num_q, num_k,
            *q_TND.stride()[:2], *k_TMD.stride()[:2], *q_out.stride()[:2], *k_out.stride()[:2],
            HALF=d // 2, BLOCK_HALF=next_power_of_2(d // 2), HEADS=heads, num_warps=2,
        )  # fmt: skip
    return q_out, k_out


def rope_reference(
    q_TND: Tensor, k_TMD: Tensor, positions_T: Tensor, cos_PD2: Tensor, sin_PD2: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain-PyTorch twin of `rope_triton`; float64 inputs make it the oracle."""
    rows = positions_T.clamp(min=0)
    cos, sin = cos_PD2[rows].unsqueeze(1), sin_PD2[rows].unsqueeze(1)

    def rotate(x: Tensor) -> Tensor:
        x1, x2 = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)

    return rotate(q_TND), rotate(k_TMD)


def rope(q_TND: Tensor, k_TMD: Tensor, positions_T: Tensor, cos_PD2: Tensor, sin_PD2: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by their positions; strided views in, new contiguous tensors out."""
    return (rope_triton if q_TND.is_cuda else rope_reference)(q_TND, k_TMD, positions_T, cos_PD2, sin_PD2)
