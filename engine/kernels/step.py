"""The first and the last kernel of a decode step: every sequence moves on by one token, on the device.

So a step needs no input from the host where the batch is the one before and no sequence begins a block. Of 256
sequences one nearly always does. Shape suffixes: B sequences, P blocks that one may hold, R rows of device-resident
state.
"""

import torch
from torch import Tensor

from engine.kernels._triton import cdiv, tl, triton

ROWS_PER_PROGRAM = 64


@triton.jit
def _advance_kernel(
    rows_ptr, positions_ptr, tables_ptr, last_token_ptr, token_ptr, index_ptr, context_len_ptr, slot_ptr,
    table_stride, num_rows,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program; a negative position stays one, whatever is added."""
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
    _advance_kernel[(cdiv(num_rows, ROWS_PER_PROGRAM),)](
        rows_B, positions_B, tables_BP, last_token_R, tokens, indices, context_lens, slots,
        tables_BP.stride(0), num_rows,
        BLOCK_SIZE=block_size, ROWS=ROWS_PER_PROGRAM, num_warps=2,
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
    """ROWS tokens a program."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = index < num_rows
    row = tl.load(rows_ptr + index, mask=mask, other=0)
    tl.store(last_token_ptr + row, tl.load(tokens_ptr + index, mask=mask, other=0), mask=mask)


def publish_triton(tokens_B: Tensor, rows_B: Tensor, last_token_R: Tensor) -> None:
    """Launcher of `_publish_kernel`; see `publish`."""
    num_rows = tokens_B.shape[0]
    _publish_kernel[(cdiv(num_rows, ROWS_PER_PROGRAM),)](
        tokens_B, rows_B, last_token_R, num_rows, ROWS=ROWS_PER_PROGRAM, num_warps=2
    )


def publish_reference(tokens_B: Tensor, rows_B: Tensor, last_token_R: Tensor) -> None:
    """Plain-PyTorch twin of `publish_triton`."""
    last_token_R[rows_B] = tokens_B


def publish(tokens_B: Tensor, rows_B: Tensor, last_token_R: Tensor) -> None:
    """last_token[rows] = tokens: feed sampled tokens back without a trip to the host."""
    (publish_triton if tokens_B.is_cuda else publish_reference)(tokens_B, rows_B, last_token_R)
