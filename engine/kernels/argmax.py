"""The greedy choice: the column of the largest element of each row, in two stages.

    token[b] = argmax_v logits[b, v], the lowest v among equals

Shape suffixes: B rows, V vocabulary, J parts of it. A vocabulary is long and rows are few, so each row is cut into
parts: first the best of each, then the best of those. NaN counts as +inf: a broken row still yields one of its columns.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, num_sms, pdl_options, tl, triton

# Elements, and best ones of parts, that a program compares at once.
BLOCK_TOKENS, BLOCK_PARTS = 4096, 2048
# Programs that together keep memory busy.
PROGRAMS_PER_SM = 8
NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _keep_better(best, token, value, index):
    """Lane by lane the larger value and its token, of equals the lower token."""
    better = (value > best) | ((value == best) & (index < token))
    return tl.where(better, value, best), tl.where(better, index, token)


@triton.jit
def _best_lane(best, token):
    """(the largest value of all lanes, the lowest token that has it)."""
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, token, NO_TOKEN), axis=0)


# How long parts are, and how many, depends on the number of rows, which changes from step to step.
@triton.jit(do_not_specialize=["num_blocks"])
def _part_argmax_kernel(
    x_ptr, best_ptr, token_ptr, N, num_blocks, x_stride, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Program (b, j): the best of part j of row b, num_blocks blocks long."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = part * num_blocks * BLOCK + tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    token = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for block in range(num_blocks):
        index = block * BLOCK + lane
        value = tl.load(x_ptr + row * x_stride + index, mask=index < N, other=float("-inf")).to(tl.float32)
        value = tl.where(value != value, float("inf"), value)
        best, token = _keep_better(best, token, value, tl.where(index < N, index, NO_TOKEN))
    top, first = _best_lane(best, token)
    target = row * tl.num_programs(1) + part
    tl.store(best_ptr + target, top)
    tl.store(token_ptr + target, first)


@triton.jit(do_not_specialize=["num_parts"])
def _merge_argmax_kernel(
    best_ptr, token_ptr, out_token_ptr, out_best_ptr, num_parts, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Program b: the best part of row b."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    token = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for low in range(0, num_parts, BLOCK):
        at, mask = row * num_parts + low + lane, low + lane < num_parts
        value = tl.load(best_ptr + at, mask=mask, other=float("-inf"))
        best, token = _keep_better(best, token, value, tl.load(token_ptr + at, mask=mask, other=NO_TOKEN))
    top, first = _best_lane(best, token)
    tl.store(out_best_ptr + row, top)
    tl.store(out_token_ptr + row, first.to(tl.int64))


def argmax_triton(x_BV: Tensor, pdl: bool = False) -> Tensor:
    """Launcher of `_part_argmax_kernel` and `_merge_argmax_kernel`; see `argmax`."""
    rows, n = x_BV.shape
    blocks = cdiv(n, BLOCK_TOKENS)
    num_blocks = cdiv(blocks, max(1, min(blocks, PROGRAMS_PER_SM * num_sms(x_BV) // max(1, rows))))
    parts = cdiv(blocks, num_blocks)
    best = torch.empty((rows, parts), dtype=torch.float32, device=x_BV.device)
    token = torch.empty((rows, parts), dtype=torch.int32, device=x_BV.device)
    if rows:
        _part_argmax_kernel[(rows, parts)](
            x_BV, best, token, n, num_blocks, x_BV.stride(0), BLOCK=BLOCK_TOKENS, num_warps=8, **pdl_options(pdl)
        )
    return merge_argmax_triton(best, token, pdl)[0]


def merge_argmax_triton(best_BJ: Tensor, token_BJ: Tensor, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """(tokens int64 [B], best fp32 [B]) of the parts' best and their tokens (int32), both contiguous."""
    rows, num_parts = best_BJ.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=best_BJ.device)
    best = torch.empty(rows, dtype=torch.float32, device=best_BJ.device)
    if rows:
        _merge_argmax_kernel[(rows,)](
            best_BJ, token_BJ, tokens, best, num_parts, BLOCK=BLOCK_PARTS, num_warps=8, **pdl_options(pdl)
        )
    return tokens, best


def argmax_reference(x_BV: Tensor, pdl: bool = False) -> Tensor:
    """Plain-PyTorch twin of `argmax_triton`."""
    return x_BV.nan_to_num(float("inf"), float("inf"), float("-inf")).argmax(-1)


def argmax(x_BV: Tensor, pdl: bool = False) -> Tensor:
    """The column of each row's largest element, int64 [B]; rows may be strided."""
    return (argmax_triton if x_BV.is_cuda else argmax_reference)(x_BV, pdl)
