"""RMSNorm, and the residual add before it.

    s = x + residual, rounded to the dtype;  y = s / sqrt(mean(s^2) + eps) * weight

Shape suffixes: T tokens, H normed dimension. Statistics in fp32, one rounding at the end: vLLM's order, which is
closer to float64 than Hugging Face's (that rounds before the weight). Inputs are never written.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, pdl_options, tl, triton


# The number of rows changes from step to step and must not cause a new compilation.
@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, s_ptr,
    num_rows, num_heads, H, x_stride_t, x_stride_h, r_stride_t, y_stride_t, y_stride_h, s_stride_t, eps,
    ROWS: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program; row = token * num_heads + head, so that views of a packed projection need no copy."""
    # Before any load, whose use the compiler may move ahead of it.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    cols = tl.arange(0, BLOCK_H)[None, :]
    weight = 1.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + cols, mask=cols < H, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & (cols < H)
    token, head = (rows // num_heads).to(tl.int64), rows % num_heads
    x = tl.load(x_ptr + token * x_stride_t + head * x_stride_h + cols, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + token * r_stride_t + cols, mask=mask, other=0.0)
        s = (x + residual.to(tl.float32)).to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + token * s_stride_t + cols, s, mask=mask)
        x = s.to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / H + eps) * weight
    tl.store(y_ptr + token * y_stride_t + head * y_stride_h + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


def norm_tile(num_rows: int, h: int) -> tuple[int, int, int]:
    """(rows a program, padded row length, warps): short rows share a program, a long row gets more warps."""
    block_h = next_power_of_2(h)
    rows = min(max(1, 1024 // block_h), next_power_of_2(num_rows))
    return rows, block_h, min(16, max(1, rows * block_h // 512))


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, y: Tensor, s: Tensor | None, pdl: bool
) -> None:
    h = x.shape[-1]
    num_heads = x.shape[1] if x.dim() == 3 else 1
    num_rows = x.shape[0] * num_heads
    if num_rows == 0 or h == 0:
        return
    rows, block_h, num_warps = norm_tile(num_rows, h)
    _rms_norm_kernel[(cdiv(num_rows, rows),)](
        x, residual, weight, y, s, num_rows, num_heads, h,
        x.stride(0), x.stride(-2), 0 if residual is None else residual.stride(0),
        y.stride(0), y.stride(-2), 0 if s is None else s.stride(0), eps,
        ROWS=rows, BLOCK_H=block_h, num_warps=num_warps, **pdl_options(pdl),
    )  # fmt: skip


def rms_norm_triton(x_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False) -> Tensor:
    """Launcher of `_rms_norm_kernel`; see `rms_norm`."""
    y = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device)
    _launch(x_TH, None, weight_H, eps, y, None, pdl)
    return y


def rms_norm_reference(x_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False) -> Tensor:
    """Plain-PyTorch twin of `rms_norm_triton`; float64 inputs make it the oracle."""
    x = x_TH.to(torch.promote_types(x_TH.dtype, torch.float32))
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (y if weight_H is None else y * weight_H).to(x_TH.dtype)


def rms_norm(x_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False) -> Tensor:
    """x / rms(x) * weight over the last dimension of [T, H] or [T, heads, H]; rows may be strided."""
    return (rms_norm_triton if x_TH.is_cuda else rms_norm_reference)(x_TH, weight_H, eps, pdl)


def add_rms_norm_triton(
    x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """Launcher of `_rms_norm_kernel` with a residual; see `add_rms_norm`."""
    y = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device)
    s = torch.empty_like(y)
    _launch(x_TH, residual_TH, weight_H, eps, y, s, pdl)
    return y, s


def add_rms_norm_reference(
    x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """Plain-PyTorch twin of `add_rms_norm_triton`."""
    s = x_TH + residual_TH
    return rms_norm_reference(s, weight_H, eps), s


def add_rms_norm(
    x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor | None, eps: float, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """(norm(s), s) with s = x + residual rounded to the dtype; both are new tensors."""
    return (add_rms_norm_triton if x_TH.is_cuda else add_rms_norm_reference)(x_TH, residual_TH, weight_H, eps, pdl)
