"""Every fused kernel as a case, and the places a model has it at."""

from collections.abc import Mapping
from typing import Any

from experiments.kernel_records import ALONE, CHAINED
from experiments.kernels.attention_cases import Attention, QkvPost
from experiments.kernels.case import Case, Shape
from experiments.kernels.chained_cases import ChainedGateUpSilu, ChainedLmHead, ChainedNormLinear
from experiments.kernels.linear_cases import GateUpSilu, LinearAdd, LmHead, NormLinear

CASES: dict[str, type[Case]] = {
    case.OP: case for case in (NormLinear, LinearAdd, GateUpSilu, LmHead, QkvPost, Attention)
}
# Those that the fused engine runs in another form than alone.
CHAINED_CASES: dict[str, type[Case]] = {case.OP: case for case in (ChainedNormLinear, ChainedGateUpSilu, ChainedLmHead)}
# Rows of the design's list.
ALL_ROWS = (1, 2, 3, 7, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 199, 511, 2048)


def forms(op: str) -> dict[str, type[Case]]:
    """Each form of a kernel, last the one that the fused engine runs."""
    chained = {CHAINED: CHAINED_CASES[op]} if op in CHAINED_CASES else {}
    return {ALONE: CASES[op], **chained}


def sites(op: str, sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Where a model of these sizes (the keys of configs/model) runs a kernel, and the shape it has there."""
    hidden, inner, heads = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_heads"]
    kv_heads, dim = sizes["num_kv_heads"], sizes["head_dim"]
    qkv, gate_up = ((heads + 2 * kv_heads) * dim, hidden), (2 * inner, hidden)
    found: dict[str, dict[str, Shape]] = {
        "norm_linear": {"qkv": qkv, "gate_up": gate_up},
        "linear_add": {"o": (hidden, heads * dim), "down": (hidden, inner)},
        "gate_up_silu": {"gate_up": gate_up},
        "lm_head": {"lm_head": (sizes["vocab_size"], hidden)},
        "qkv_post": {"qkv_post": (heads, kv_heads, dim)},
        "attention": {"attention": (heads, kv_heads, dim)},
    }
    return found[op]
