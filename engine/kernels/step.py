"""The first kernel of a decode step: advance every sequence by one token, on the device.

So a step needs no input from the host where the batch is the one before and no sequence begins a block. Of 256
sequences one nearly always does.
"""

import torch
from torch import Tensor

from engine.kernels._triton import tl, triton


@triton.jit
def _advance_kernel(
    rows_ptr, positions_ptr, tables_ptr, last_token_ptr, token_ptr, index_ptr, context_len_ptr, slot_ptr,
    table_stride, num_rows,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    position = tl.load(positions_ptr + row, mask=mask, other=0) + 1
    tl.store(positions_ptr + row, position, mask=mask)
    active = mask & (position >= 0)
    block = tl.load(tables_ptr + row * table_stride + position // BLOCK_SIZE, mask=active, other=0)
    token = tl.load(last_token_ptr + tl.load(rows_ptr + row, mask=mask, other=0), mask=mask, other=0)
    tl.store(token_ptr + row, token, mask=mask)
    tl.store(index_ptr + row, tl.maximum(position, 0), mask=mask)
    tl.store(context_len_ptr + row, tl.where(active, position + 1, 0), mask=mask)
    tl.store(slot_ptr + row, tl.where(active, block * BLOCK_SIZE + position % BLOCK_SIZE, -1), mask=mask)


def advance_triton(
    rows_B: Tensor, positions_B: Tensor, tables_BP: Tensor, last_token_R: Tensor, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launcher of `_advance_kernel`; see `advance`."""
    num_rows = rows_B.shape[0]
    tokens = torch.empty(num_rows, dtype=last_token_R.dtype, device=rows_B.device)
    indices = torch.empty_like(positions_B)
    context_lens = torch.empty_like(positions_B)
    slots = torch.empty_like(positions_B)
    _advance_kernel[(triton.cdiv(num_rows, 64),)](
        rows_B, positions_B, tables_BP, last_token_R, tokens, indices, context_lens, slots,
        tables_BP.stride(0), num_rows,
        BLOCK_SIZE=block_size, ROWS=64, num_warps=2,
    )  # fmt: skip
    return tokens, indices, context_lens, slots


def advance_reference(
    rows_B: Tensor, positions_B: Tensor, tables_BP: Tensor, last_token_R: Tensor, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain-PyTorch twin of `advance_triton`."""
    positions_B += 1
    active = positions_B >= 0
    position = positions_B.clamp(min=0).long()
    block = tables_BP.gather(1, (position // block_size).unsqueeze(1)).squeeze(1)
    slots = torch.where(active, block * block_size + position % block_size, -1).to(positions_B.dtype)
    return last_token_R[rows_B], position.to(positions_B.dtype), torch.where(active, positions_B + 1, 0), slots


def advance(
    rows_B: Tensor, positions_B: Tensor, tables_BP: Tensor, last_token_R: Tensor, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens_B, indices_B, context_lens_B, slots_B) of the next decode step; `positions_B` moves on by one in place.

    `last_token_R` holds each sequence's newest token by its row; `indices_B` are the positions fit for table look-ups.
    A negative position marks a padded row: index 0, slot -1, context length 0.
    """
    launch = advance_triton if positions_B.is_cuda else advance_reference
    return launch(rows_B, positions_B, tables_BP, last_token_R, block_size)


@triton.jit
def _publish_kernel(tokens_ptr, rows_ptr, last_token_ptr, num_rows, ROWS: tl.constexpr):
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = index < num_rows
    row = tl.load(rows_ptr + index, mask=mask, other=0)
    tl.store(last_token_ptr + row, tl.load(tokens_ptr + index, mask=mask, other=0), mask=mask)


def publish(tokens_B: Tensor, rows_B: Tensor, last_token_R: Tensor) -> None:
    """last_token[rows] = tokens: feed sampled tokens back without a trip to the host."""
    if not tokens_B.is_cuda:
        last_token_R[rows_B] = tokens_B
        return
    num_rows = tokens_B.shape[0]
    _publish_kernel[(triton.cdiv(num_rows, 64),)](tokens_B, rows_B, last_token_R, num_rows, ROWS=64, num_warps=2)
