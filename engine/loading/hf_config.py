"""A Hugging Face `config.json` as a ModelConfig; what the engine cannot compute is refused by the key's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import Architecture, ModelConfig
from engine.errors import ModelError
from engine.loading.hf_rope import parse_rope
from engine.loading.keys import Keys, read_json

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Keys that would change the computation, each with the value (besides null) that does not.
UNSUPPORTED: dict[str, object] = {
    "num_experts": 0,
    "num_local_experts": 0,
    "n_routed_experts": 0,
    "moe_intermediate_size": 0,
    "quantization_config": {},
    "compression_config": {},
    "partial_rotary_factor": 1,
}
QWEN3_HEAD_DIM = 128
SLIDING_WINDOW = 4096


def read_hf_config(config_path: Path) -> ModelConfig:
    """A model folder's config.json; its end-of-sequence ids come from generation_config.json where that names any."""
    generation_path = config_path.with_name("generation_config.json")
    generation = read_json(generation_path) if generation_path.exists() else {}
    return parse_hf_config(read_json(config_path), generation, str(config_path))


def parse_hf_config(raw: Mapping[str, Any], generation: Mapping[str, Any], source: str) -> ModelConfig:
    """config.json of transformers 4 or 5 -> ModelConfig; `source` names the file in errors.

    Absent optional keys take the defaults of the architecture's class in transformers.
    """
    architecture = _architecture(raw, source)
    _refuse_unsupported(raw, source)
    keys = Keys(raw, source)
    num_heads = keys.size("num_attention_heads")
    # Null means one KV head for each query head; an absent key has that meaning in Llama only.
    default_kv_heads = num_heads if architecture == "llama" or "num_key_value_heads" in raw else None
    num_kv_heads = keys.size("num_key_value_heads", default_kv_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{source}: num_attention_heads={num_heads} is no multiple of num_key_value_heads={num_kv_heads}"
        )
    attention_bias = architecture in ("llama", "qwen3") and keys.flag("attention_bias")
    max_position_embeddings = keys.size("max_position_embeddings")
    return ModelConfig(
        architecture=architecture,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        num_layers=keys.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(keys, architecture, num_heads),
        max_position_embeddings=max_position_embeddings,
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or architecture == "qwen2",
        o_bias=attention_bias,
        mlp_bias=architecture == "llama" and keys.flag("mlp_bias"),
        qk_norm=architecture == "qwen3",
        sliding_window=_sliding_window(keys, architecture),
        rope=parse_rope(raw, max_position_embeddings, source),
        bos_token_id=next(iter(keys.token_ids("bos_token_id")), None),
        eos_token_ids=Keys(generation, source).token_ids("eos_token_id") or keys.token_ids("eos_token_id"),
    )


def _architecture(raw: Mapping[str, Any], source: str) -> Architecture:
    names = raw.get("architectures")
    if not names:
        names = [name for name, model_type in ARCHITECTURES.items() if model_type == raw.get("model_type")]
    known = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or len(names) != 1:
        raise ModelError(f"{source}: architectures={raw.get('architectures')!r} must name one of {known}")
    if names[0] not in ARCHITECTURES:
        raise ModelError(f"{source}: architectures={names[0]!r} is not supported; supported are {known}")
    return ARCHITECTURES[names[0]]


def _refuse_unsupported(raw: Mapping[str, Any], source: str) -> None:
    for key, harmless in UNSUPPORTED.items():
        if raw.get(key) is not None and raw[key] != harmless:
            raise ModelError(f"{source}: {key}={raw[key]!r} is not supported; take a dense, unquantized checkpoint")
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"{source}: hidden_act={activation!r} is not supported; only silu is")


def _head_dim(keys: Keys, architecture: Architecture, num_heads: int) -> int:
    hidden_size = keys.size("hidden_size")
    default = QWEN3_HEAD_DIM if architecture == "qwen3" else hidden_size // num_heads
    head_dim = keys.size("head_dim", default)
    if "head_dim" not in keys.raw and architecture != "qwen3" and hidden_size % num_heads:
        raise ModelError(f"{keys.source}: hidden_size={hidden_size} is no multiple of num_attention_heads={num_heads}")
    if head_dim % 2:
        raise ModelError(f"{keys.source}: head_dim={head_dim} is odd, and RoPE needs an even one")
    return head_dim


def _sliding_window(keys: Keys, architecture: Architecture) -> int | None:
    """Positions that a query sees, itself included; None for all of them."""
    if architecture == "llama" or (architecture != "mistral" and not keys.flag("use_sliding_window")):
        return None
    if "sliding_window" in keys.raw and keys.raw["sliding_window"] is None:
        return None
    window = keys.size("sliding_window", SLIDING_WINDOW)
    if architecture == "mistral":
        return window
    num_layers = keys.size("num_hidden_layers")
    first = keys.count("max_window_layers", 28)
    kinds = keys.raw.get("layer_types") or [
        "full_attention" if i < first else "sliding_attention" for i in range(num_layers)
    ]
    if "sliding_attention" not in kinds:
        return None
    if set(kinds) == {"sliding_attention"}:
        return window
    raise ModelError(
        f"{keys.source}: use_sliding_window with full attention in some layers only (max_window_layers, layer_types) "
        "is not supported"
    )
