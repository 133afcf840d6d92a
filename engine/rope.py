"""Rotary position embedding: the frequencies of every kind and their cosine and sine tables.

Each formula follows transformers' `modeling_rope_utils`, in float32 and in the same order of operations, so that a
table equals the one a reference model computes. Shape suffixes: P position, D2 half the head dim.
"""

import math

import torch
from torch import Tensor

from engine.config import ModelConfig, RopeConfig
from engine.errors import ModelError


def rope_tables(config: ModelConfig, max_len: int, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """`(cos_PD2, sin_PD2)` for positions below `max_len`, float32, with the attention scale folded in.

    Dynamic NTK rescales its frequencies with the length of the batch at hand, which no fixed table can follow (nor can
    a KV cache: its keys are rotated already). Up to `max_position_embeddings` it equals the default kind; a longer
    table raises ModelError.
    """
    if config.rope.kind == "dynamic" and max_len > config.max_position_embeddings:
        raise ModelError(
            f"max_model_len={max_len} is longer than max_position_embeddings={config.max_position_embeddings}, "
            "and RoPE of kind dynamic changes its frequencies there; lower max_model_len"
        )
    inv_freq_D2, scale = inverse_frequencies(config)
    # On the CPU whatever the device, so that every device holds the same table.
    angle_PD2 = torch.arange(max_len, dtype=torch.float32)[:, None] * inv_freq_D2[None, :]
    return (angle_PD2.cos() * scale).to(device), (angle_PD2.sin() * scale).to(device)


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """`(inv_freq_D2, attention_scale)`: radians per position, float32, and the factor on cosine and sine."""
    rope, head_dim = config.rope, config.head_dim
    inv_freq_D2 = 1.0 / _wavelengths(rope.theta, head_dim)
    match rope.kind:
        # Dynamic is the default kind up to max_position_embeddings; see `rope_tables`.
        case "default" | "dynamic":
            return inv_freq_D2, 1.0
        case "linear":
            return inv_freq_D2 / rope.factor, 1.0
        case "llama3":
            return _llama3(inv_freq_D2, rope, _original_length(config)), 1.0
        case "yarn":
            return _yarn(rope, head_dim, _original_length(config)), _yarn_attention_scale(rope)
        case unknown:
            raise ModelError(f"rope kind {unknown!r} is not one of default, linear, dynamic, llama3, yarn")


def _wavelengths(theta: float, head_dim: int) -> Tensor:
    """`theta ** (2i / head_dim)`, positions per radian, [D2]."""
    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _original_length(config: ModelConfig) -> int:
    return config.rope.original_max_position_embeddings or config.max_position_embeddings


def _llama3(inv_freq_D2: Tensor, rope: RopeConfig, original_length: int) -> Tensor:
    """Keep high frequencies, divide low ones by the factor, blend linearly in between (Llama 3.1)."""
    wavelength_D2 = 2 * math.pi / inv_freq_D2
    blend_D2 = (original_length / wavelength_D2 - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended_D2 = (1 - blend_D2) * inv_freq_D2 / rope.factor + blend_D2 * inv_freq_D2
    is_low_D2 = wavelength_D2 > original_length / rope.low_freq_factor
    is_high_D2 = wavelength_D2 < original_length / rope.high_freq_factor
    return torch.where(is_low_D2, inv_freq_D2 / rope.factor, torch.where(is_high_D2, inv_freq_D2, blended_D2))


def _yarn(rope: RopeConfig, head_dim: int, original_length: int) -> Tensor:
    """Extrapolate dimensions that turn often within the original context, interpolate the others (arXiv 2309.00071)."""

    def dimension_turning(num_rotations: float) -> float:
        turns = math.log(original_length / (num_rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A ramp of zero width would divide by zero.
    width = high - low if high != low else 0.001
    interpolated_D2 = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    extrapolated_D2 = 1 - interpolated_D2
    wavelengths_D2 = _wavelengths(rope.theta, head_dim)
    return (1.0 / (rope.factor * wavelengths_D2)) * (1 - extrapolated_D2) + (1.0 / wavelengths_D2) * extrapolated_D2


def _yarn_attention_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
