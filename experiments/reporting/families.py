"""Families of ops, each with one colour in every figure, so that a baseline and what replaced it can be told apart."""

from experiments.reporting.charts.palette import SERIES

OTHER = "other"
FAMILIES: dict[str, tuple[str, ...]] = {
    OTHER: (),
    "linear": ("linear",),
    "RoPE, KV store": ("rope", "store_kv", "qkv_post"),
    "attention": ("decode_attention", "prefill_attention", "attention", "attend"),
    "norm": ("rms_norm", "add_rms_norm"),
    "activation": ("silu_mul",),
    "fused linear": ("norm_linear", "norm_qkv", "linear_add", "gate_up_silu", "next_token"),
    "embedding, sampling": ("embed", "argmax", "sample"),
}
SLOTS = {family: slot for slot, family in enumerate(FAMILIES)}
IDLE = len(SERIES)
_FAMILY = {op: family for family, ops in FAMILIES.items() for op in ops}


def family_of(owner: str) -> str:
    """The family of an op (or of a phase, for work without one)."""
    return _FAMILY.get(owner, OTHER)


def slot_of(owner: str) -> int:
    """The palette slot of an op."""
    return SLOTS[family_of(owner)]


def legend(owners: set[str], idle: bool = False) -> tuple[tuple[str, int], ...]:
    """The families that appear, in the order of their slots, grey last."""
    found = {family_of(owner) for owner in owners}
    names = [*(name for name in SLOTS if name in found and name != OTHER), *([OTHER] if OTHER in found else [])]
    return (*((name, SLOTS[name]) for name in names), *([("idle", IDLE)] if idle else []))
