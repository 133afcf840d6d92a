"""Tiny GGUF files of the transformers models in tests.engine.checkpoints, written as llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel

from tests.engine.checkpoints import tiny_model

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
# The 256 byte symbols, one token a merge, and two control tokens.
TOKENS = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<bos>", "<eos>"]
NUM_CONTROL = 2
BOS_ID, EOS_ID = len(TOKENS) - 2, len(TOKENS) - 1
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_model(architecture: str) -> Any:
    """The model that `write_gguf` stores; its vocabulary is the file's."""
    return tiny_model(architecture, vocab_size=len(TOKENS))


def write_gguf(
    path: Path,
    architecture: str,
    *,
    name: str | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """Write `gguf_model(architecture)`; `metadata` and `tensors` add, replace or (None) drop entries.

    `name` replaces the architecture's name in the file.
    """
    model = gguf_model(architecture)
    writer = GGUFWriter(path, name or architecture)
    for key, value in (_metadata(model.config, architecture) | (metadata or {})).items():
        _add(writer, key, value)
    stored = {_gguf_name(key): _values(key, value, model.config) for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del stored["output.weight"]
    for key, value in (stored | (tensors or {})).items():
        if value is not None:
            writer.add_tensor(key, np.asarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(config: Any, architecture: str) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    model = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": 10_000.0,
    }
    tokenizer = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "merges": MERGES,
        "token_type": [1] * (len(TOKENS) - NUM_CONTROL) + [3] * NUM_CONTROL,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    named = {f"{architecture}.{key}": value for key, value in model.items()}
    return named | {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _values(name: str, tensor: torch.Tensor, config: Any) -> Any:
    """llama.cpp interleaves the halves of query and key heads of its `llama` architecture, biases included."""
    values = tensor.detach().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = next((kind for kind in heads if kind in name), None)
    if config.model_type != "llama" or kind is None:
        return values
    halves = values.reshape(heads[kind], 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
