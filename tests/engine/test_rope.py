"""RoPE tables of every kind against transformers' own rotary embedding.

Tolerance: both sides follow one formula in float32; frequencies may differ by a few roundings (1e-6 relative). An
angle is position times frequency, so a table entry may differ by as much as the angle does: 1e-6 x 200 positions.
"""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.config import ModelConfig, RopeConfig
from engine.errors import ModelError
from engine.rope import inverse_frequencies, rope_tables

MAX_POSITIONS = 512
ROPES: dict[str, dict[str, Any]] = {
    "default": {"kind": "default", "theta": 10_000.0},
    "default-large-theta": {"kind": "default", "theta": 1e6},
    "linear": {"kind": "linear", "theta": 10_000.0, "factor": 2.5},
    "dynamic": {"kind": "dynamic", "theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "kind": "llama3",
        "theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"kind": "yarn", "theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-untruncated": {
        "kind": "yarn",
        "theta": 150_000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn-mscale": {
        "kind": "yarn",
        "theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.707,
        "mscale_all_dim": 1.3,
    },
    "yarn-attention-factor": {
        "kind": "yarn",
        "theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.25,
    },
}


def make_config(head_dim: int, **rope: Any) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=7,
        hidden_size=2 * head_dim,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope=RopeConfig(**rope),
    )


def transformers_rope(head_dim: int, **rope: Any) -> LlamaRotaryEmbedding:
    parameters = {**rope, "rope_type": rope["kind"], "rope_theta": rope["theta"]}
    parameters = {key: value for key, value in parameters.items() if key not in ("kind", "theta")}
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters=parameters,
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("head_dim", [4, 16, 64, 80, 96, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_tables_equal_transformers(name: str, head_dim: int) -> None:
    reference = transformers_rope(head_dim, **ROPES[name])
    config = make_config(head_dim, **ROPES[name])
    inv_freq_D2, scale = inverse_frequencies(config)
    assert inv_freq_D2.dtype == torch.float32
    torch.testing.assert_close(inv_freq_D2, reference.inv_freq, rtol=1e-6, atol=0)
    assert scale == pytest.approx(reference.attention_scaling, rel=1e-12)

    length = 200
    cos_PD2, sin_PD2 = rope_tables(config, length, "cpu")
    assert cos_PD2.shape == sin_PD2.shape == (length, head_dim // 2)
    assert cos_PD2.dtype == sin_PD2.dtype == torch.float32
    positions = torch.arange(length)[None]
    cos_1PD, sin_1PD = reference(torch.zeros(1, dtype=torch.float32), positions)
    torch.testing.assert_close(cos_PD2, cos_1PD[0, :, : head_dim // 2], rtol=0, atol=1e-6 * length)
    torch.testing.assert_close(sin_PD2, sin_1PD[0, :, : head_dim // 2], rtol=0, atol=1e-6 * length)


def test_original_length_defaults_to_the_models_positions() -> None:
    rope = {"kind": "yarn", "theta": 10_000.0, "factor": 4.0}
    explicit = make_config(64, **rope, original_max_position_embeddings=MAX_POSITIONS)
    assert torch.equal(inverse_frequencies(make_config(64, **rope))[0], inverse_frequencies(explicit)[0])


def test_dynamic_serves_the_models_positions_and_refuses_more() -> None:
    config = make_config(64, **ROPES["dynamic"])
    reference = transformers_rope(64, **ROPES["dynamic"])
    cos_PD2, _ = rope_tables(config, MAX_POSITIONS)
    cos_1PD, _ = reference(torch.zeros(1), torch.arange(MAX_POSITIONS)[None])
    torch.testing.assert_close(cos_PD2, cos_1PD[0, :, :32], rtol=0, atol=1e-6 * MAX_POSITIONS)
    with pytest.raises(ModelError, match=r"max_model_len=513 is longer than max_position_embeddings=512"):
        rope_tables(config, MAX_POSITIONS + 1)


def test_an_unknown_kind_is_refused_by_name() -> None:
    config = make_config(64, kind="longrope", theta=10_000.0)
    with pytest.raises(ModelError, match="'longrope' is not one of default, linear, dynamic, llama3, yarn"):
        inverse_frequencies(config)
