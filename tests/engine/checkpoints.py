"""Tiny random Hugging Face checkpoints of every architecture, fp32, for tests against transformers."""

from pathlib import Path
from typing import Any

import torch
import transformers

from engine.weights import ModelWeights

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# Odd on purpose: no size is a power of two or a multiple of 16 but where an architecture demands it.
SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 20, "tie_word_embeddings": True},
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def tiny_model(architecture: str, **overrides: Any) -> Any:
    """A transformers model with seeded random fp32 weights; `overrides` are keys of its config.

    Norms and biases are drawn too: initialised as ones and zeros they would hide a mix-up.
    """
    config_class, model_class = CLASSES[architecture]
    config = config_class(**{**SIZES, **DIFFERENCES[architecture], **overrides})
    model = model_class(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, architecture)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            parameter.copy_(torch.empty_like(parameter).normal_(mean, 0.1, generator=generator))
    return model


def tiny_checkpoint(path: Path, architecture: str, *, max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Save `tiny_model` to the folder `path` as safetensors; `max_shard_size="40KB"` gives several shards."""
    tiny_model(architecture, **overrides).save_pretrained(path, max_shard_size=max_shard_size)
    return path


def assert_same_weights(weights: ModelWeights, model: Any) -> None:
    """Bit for bit, the packed tensors against transformers' modules."""
    assert torch.equal(weights.embed_VH, model.model.embed_tokens.weight)
    assert torch.equal(weights.lm_head.weight_NK, model.lm_head.weight)
    assert torch.equal(weights.final_norm_H, model.model.norm.weight)
    assert len(weights.layers) == len(model.model.layers)
    for ours, theirs in zip(weights.layers, model.model.layers, strict=True):
        attention, mlp = theirs.self_attn, theirs.mlp
        linears = {
            ours.qkv: [attention.q_proj, attention.k_proj, attention.v_proj],
            ours.o: [attention.o_proj],
            ours.gate_up: [mlp.gate_proj, mlp.up_proj],
            ours.down: [mlp.down_proj],
        }
        for packed, parts in linears.items():
            assert torch.equal(packed.weight_NK, torch.cat([part.weight for part in parts]))
            biases = [part.bias for part in parts]
            if packed.bias_N is None:
                assert biases == [None] * len(parts)
            else:
                assert torch.equal(packed.bias_N, torch.cat(biases))
        assert torch.equal(ours.attn_norm_H, theirs.input_layernorm.weight)
        assert torch.equal(ours.mlp_norm_H, theirs.post_attention_layernorm.weight)
        if hasattr(attention, "q_norm"):
            assert torch.equal(ours.q_norm_D, attention.q_norm.weight)
            assert torch.equal(ours.k_norm_D, attention.k_norm.weight)
        else:
            assert ours.q_norm_D is None
            assert ours.k_norm_D is None
