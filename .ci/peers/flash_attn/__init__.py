"""The two functions of flash-attn that nano-vLLM calls, on the FlashAttention 3 that vLLM brings.

For a GPU machine where flash-attn cannot be built. On nano-vLLM's path in `.ci/gpu peers_small` and `peers_large` only.
"""

import torch
from torch import Tensor
from vllm.vllm_flash_attn.flash_attn_interface import flash_attn_varlen_func as varlen_func

FA_VERSION = 3


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, max_seqlen_q: int, cu_seqlens_q: Tensor, max_seqlen_k: int, cu_seqlens_k: Tensor,
    softmax_scale: float, causal: bool, block_table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Packed prompts [tokens, heads, D]; with a block table k and v are caches [blocks, block size, heads, D]."""
    keys = {"cu_seqlens_k": cu_seqlens_k} if block_table is None else {"seqused_k": cu_seqlens_k.diff()}
    o: Tensor = varlen_func(
        q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, **keys,
        softmax_scale=softmax_scale, causal=causal, block_table=block_table, fa_version=FA_VERSION,
    )  # fmt: skip
    return o


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor, softmax_scale: float,
    causal: bool,
) -> Tensor:  # fmt: skip
    """One query a sequence, [sequences, 1, heads, D]."""
    starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    o: Tensor = varlen_func(
        q.squeeze(1), k_cache, v_cache, 1, starts, block_table.shape[1] * k_cache.shape[1], seqused_k=cache_seqlens,
        softmax_scale=softmax_scale, causal=causal, block_table=block_table, fa_version=FA_VERSION,
    )  # fmt: skip
    return o.unsqueeze(1)
