"""Both attentions of the engine: one query per sequence, and chunks of queries."""

from engine.kernels.decode_attention import paged_decode_attention
from engine.kernels.prefill_attention import varlen_prefill_attention

__all__ = ["paged_decode_attention", "varlen_prefill_attention"]
