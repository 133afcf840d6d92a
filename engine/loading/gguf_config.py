"""The metadata of a GGUF file as a ModelConfig."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import Architecture, ModelConfig, RopeConfig
from engine.errors import ModelError
from engine.loading.keys import Keys
from engine.rope import inverse_frequencies

ARCHITECTURES: tuple[Architecture, ...] = ("llama", "qwen2", "qwen3")
ROPE_FREQS = "rope_freqs.weight"
# Every Llama 3.1 to 3.3 model has these; a GGUF file keeps only the divisors that follow from them.
LLAMA3 = RopeConfig("llama3", original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0)
SCALING_KEYS = ("type", "factor", "original_context_length", "finetuned")


def parse_gguf_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rope_freqs_D2: Tensor | None, source: str
) -> ModelConfig:
    """Metadata -> ModelConfig. Whether the head is tied and where biases are follows from the tensors' names.

    `rope_freqs_D2` are the divisors of RoPE's frequencies which Llama 3 files carry.
    """
    architecture = _architecture(metadata, source)
    keys = Keys(metadata, source)

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    if keys.count(key("expert_count"), 0):
        raise ModelError(f"{source}: {key('expert_count')}: mixtures of experts are not supported; take a dense model")
    if keys.count("split.count", 0) > 1:
        raise ModelError(f"{source}: split.count: split files are not supported; merge them with gguf-split --merge")
    hidden_size, num_heads = keys.size(key("embedding_length")), keys.size(key("attention.head_count"))
    head_dim = keys.size(key("attention.key_length"), hidden_size // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (size := keys.size(key(name), head_dim)) != head_dim:
            raise ModelError(
                f"{source}: {key(name)}={size} differs from the head dim {head_dim}, which is not supported"
            )
    num_kv_heads = keys.size(key("attention.head_count_kv"), num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{source}: {key('attention.head_count')}={num_heads} is no multiple of {num_kv_heads} KV heads"
        )
    config = ModelConfig(
        architecture=architecture,
        vocab_size=shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else keys.size(key("vocab_size")),
        hidden_size=hidden_size,
        intermediate_size=keys.size(key("feed_forward_length")),
        num_layers=keys.size(key("block_count")),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=keys.size(key("context_length")),
        norm_eps=_shortest(keys.number(key("attention.layer_norm_rms_epsilon"))),
        tie_word_embeddings="output.weight" not in shapes,
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in shapes,
        o_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
        qk_norm=architecture == "qwen3",
        sliding_window=keys.count(key("attention.sliding_window"), 0) or None,
        bos_token_id=next(iter(keys.token_ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=_eos_ids(keys),
    )
    return _with_rope(config, keys, rope_freqs_D2)


def _architecture(metadata: Mapping[str, Any], source: str) -> Architecture:
    name = metadata.get("general.architecture")
    for architecture in ARCHITECTURES:
        if name == architecture:
            return architecture
    known = ", ".join(ARCHITECTURES)
    raise ModelError(f"{source}: general.architecture={name!r} is not supported; supported are {known}")


def _eos_ids(keys: Keys) -> tuple[int, ...]:
    ids = [keys.token_ids(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return tuple(dict.fromkeys(id_ for group in ids for id_ in group))


def _with_rope(config: ModelConfig, keys: Keys, rope_freqs_D2: Tensor | None) -> ModelConfig:
    prefix = f"{config.architecture}.rope."
    theta = _shortest(keys.number(f"{prefix}freq_base", 10_000.0))
    scaling = f"{prefix}scaling."
    if unknown := [k for k in keys.raw if k.startswith(scaling) and k.removeprefix(scaling) not in SCALING_KEYS]:
        raise ModelError(f"{keys.source}: {unknown[0]} is not supported")
    kind = keys.raw.get(f"{scaling}type", "none")
    if rope_freqs_D2 is not None:
        return _with_llama3(config, theta, rope_freqs_D2, keys.source)
    if kind == "none":
        return replace(config, rope=RopeConfig(theta=theta))
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{keys.source}: {scaling}type={kind!r} is not supported; supported are none, linear, yarn")
    factor = _shortest(keys.number(f"{scaling}factor"))
    original = keys.size(f"{scaling}original_context_length") if kind == "yarn" else None
    return replace(config, rope=RopeConfig(kind, theta, factor, original))


def _with_llama3(config: ModelConfig, theta: float, divisors_D2: Tensor, source: str) -> ModelConfig:
    """Find the Llama 3 scaling that gives these divisors of the default frequencies, or refuse them."""
    factor = round(float(divisors_D2.max()), 4)
    scaled = replace(config, rope=replace(LLAMA3, theta=theta, factor=factor))
    default_D2, _ = inverse_frequencies(replace(config, rope=RopeConfig(theta=theta)))
    scaled_D2, _ = inverse_frequencies(scaled)
    expected_D2 = default_D2 / scaled_D2
    if divisors_D2.shape != expected_D2.shape or not torch.allclose(divisors_D2, expected_D2, rtol=1e-4, atol=0):
        raise ModelError(f"{source}: {ROPE_FREQS} is not the RoPE scaling of Llama 3, and no other is supported")
    return scaled


def _shortest(value: float) -> float:
    """GGUF keeps numbers in float32: 1e-5 comes back as 9.99999975e-06. The shortest decimal is the one meant."""
    return float(str(np.float32(value)))
