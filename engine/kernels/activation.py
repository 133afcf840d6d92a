"""The gated SiLU product.

    y = silu(gate) * up, gate the first half of the last dimension and up the second

Shape suffixes: T tokens, I intermediate size, 2I both halves. Arithmetic in fp32, one rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels._triton import cdiv, next_power_of_2, pdl_options, tl, triton


@triton.jit
def _silu_mul_kernel(
    x_ptr, y_ptr, I, x_stride_t, y_stride_t, BLOCK: tl.constexpr, PDL: tl.constexpr  # noqa: E741
):  # fmt: skip
    """Program (t, j): the j-th BLOCK columns of token t."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = x_ptr + token * x_stride_t + cols
    gate = tl.load(x, mask=cols < I, other=0.0).to(tl.float32)
    up = tl.load(x + I, mask=cols < I, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + token * y_stride_t + cols, y.to(y_ptr.dtype.element_ty), mask=cols < I)


def silu_mul_triton(gate_up_T2I: Tensor, pdl: bool = False) -> Tensor:
    """Launcher of `_silu_mul_kernel`; see `silu_mul`."""
    num_tokens, i = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
    y = torch.empty((num_tokens, i), dtype=gate_up_T2I.dtype, device=gate_up_T2I.device)
    if y.numel():
        block = min(1024, next_power_of_2(i))
        _silu_mul_kernel[(num_tokens, cdiv(i, block))](
            gate_up_T2I, y, i, gate_up_T2I.stride(0), y.stride(0), BLOCK=block, num_warps=4, **pdl_options(pdl)
        )
    return y


def silu_mul_reference(gate_up_T2I: Tensor, pdl: bool = False) -> Tensor:
    """Plain-PyTorch twin of `silu_mul_triton`; float64 input makes it the oracle."""
    gate, up = gate_up_T2I.to(torch.promote_types(gate_up_T2I.dtype, torch.float32)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up_T2I.dtype)


def silu_mul(gate_up_T2I: Tensor, pdl: bool = False) -> Tensor:
    """silu(gate) * up, [T, 2I] -> [T, I]; rows may be strided."""
    return (silu_mul_triton if gate_up_T2I.is_cuda else silu_mul_reference)(gate_up_T2I, pdl)
