"""Steps of the tiny model, written down by hand."""

import torch
from torch import Tensor

from engine.batch import Batch, Context, LayerCache
from engine.rope import rope_tables
from tests.engine.tiny import CONFIG


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def prefill_batch(lengths: list[int], num_decode: int = 0) -> Batch:
    """Sequences with all their tokens in one step, one page range each; the first `num_decode` have one token."""
    counts = [1] * num_decode + lengths
    tables = torch.arange(len(counts) * 2, dtype=torch.int32).reshape(-1, 2)
    slots = torch.cat([tables[i, 0] * 16 + torch.arange(n) for i, n in enumerate(counts)]).int()
    positions = torch.cat([torch.arange(n) for n in counts]).int()
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    tokens = torch.arange(sum(counts), dtype=torch.int32) % CONFIG.vocab_size
    return Batch(
        tokens, positions, slots, tables, torch.tensor(counts, dtype=torch.int32), num_decode,
        cu_seqlens if lengths else None, max(lengths, default=1),
    )  # fmt: skip


def empty_cache(num_blocks: int = 16) -> LayerCache:
    """Pages full of NaN, so that reading what was never written shows."""
    shape = (num_blocks, 16, CONFIG.num_kv_heads, CONFIG.head_dim)
    return LayerCache(torch.full(shape, torch.nan), torch.full(shape, torch.nan))


def context_of(batch: Batch) -> Context:
    """The context of the tiny model."""
    return Context(CONFIG, batch, *rope_tables(CONFIG, 64))
