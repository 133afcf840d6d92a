"""RoPE parameters from a Hugging Face config: `rope_parameters` (transformers 5) or `rope_scaling` (transformers 4)."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast, get_args

from engine.config import RopeConfig, RopeKind
from engine.errors import ModelError
from engine.loading.keys import Keys

DEFAULT_THETA = 10_000.0
KIND_KEYS = ("rope_type", "type")
# Notes of some published configs that no formula reads.
HARMLESS_KEYS = ("finetuned",)


def parse_rope(raw: Mapping[str, Any], max_position_embeddings: int, source: str) -> RopeConfig:
    """The RopeConfig of a config.json. An unknown kind or key is refused by name, never read as the default."""
    section = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    values = raw.get(section) or {}
    if not isinstance(values, Mapping):
        raise ModelError(f"{source}: {section}={values!r} must be an object")
    outer, inner = Keys(raw, source), Keys(values, f"{source}: {section}")
    kind = _kind(inner)
    _check_known(inner)
    theta = inner.number("rope_theta", outer.number("rope_theta", DEFAULT_THETA))
    match kind:
        case "default":
            return RopeConfig(theta=theta)
        case "linear" | "dynamic":
            return RopeConfig(kind, theta, inner.number("factor"))
        case "llama3":
            return _llama3(theta, _original_length(outer, inner, max_position_embeddings), inner)
        case "yarn":
            return _yarn(theta, _original_length(outer, inner, max_position_embeddings), max_position_embeddings, inner)


def _kind(keys: Keys) -> RopeKind:
    kind = next((keys.raw[key] for key in KIND_KEYS if keys.raw.get(key) is not None), "default")
    if kind not in get_args(RopeKind):
        known = ", ".join(get_args(RopeKind))
        raise ModelError(f"{keys.source}: rope_type={kind!r} is not supported; supported are {known}")
    return cast(RopeKind, kind)


def _check_known(keys: Keys) -> None:
    known = {field.name for field in fields(RopeConfig)} - {"kind", "theta"}
    known |= {*KIND_KEYS, *HARMLESS_KEYS, "rope_theta"}
    if keys.raw.get("partial_rotary_factor") == 1:
        known.add("partial_rotary_factor")
    if unknown := sorted(key for key, value in keys.raw.items() if key not in known and value is not None):
        raise ModelError(f"{keys.source}: {unknown[0]}={keys.raw[unknown[0]]!r} is not supported")


def _original_length(outer: Keys, inner: Keys, max_position_embeddings: int) -> int:
    """Where a config holds it beside the section as well as inside, the outer one wins, as in transformers."""
    key = "original_max_position_embeddings"
    return outer.size(key, inner.size(key, max_position_embeddings))


def _llama3(theta: float, original_length: int, keys: Keys) -> RopeConfig:
    low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
    if high <= low:
        raise ModelError(f"{keys.source}: high_freq_factor={high} must be above low_freq_factor={low}")
    return RopeConfig("llama3", theta, keys.number("factor"), original_length, low, high)


def _yarn(theta: float, original_length: int, max_position_embeddings: int, keys: Keys) -> RopeConfig:
    def optional(key: str) -> float | None:
        # 0 means to go without, as null does.
        return keys.number(key) if keys.raw.get(key) else None

    return RopeConfig(
        "yarn",
        theta,
        keys.number("factor", max_position_embeddings / original_length),
        original_length,
        beta_fast=keys.number("beta_fast", 32.0),
        beta_slow=keys.number("beta_slow", 1.0),
        attention_factor=optional("attention_factor"),
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        truncate=keys.flag("truncate", True),
    )
