"""A model written as a Hugging Face folder that other engines load: config.json, model.safetensors, a tokenizer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel

from engine.config import ModelConfig, RopeConfig
from engine.errors import ModelError
from engine.loading.hf_config import ARCHITECTURES, parse_hf_config
from engine.loading.load import LoadedModel
from engine.loading.names import slots_of

MODEL_TYPES = {architecture: name for name, architecture in ARCHITECTURES.items()}


def save_folder(loaded: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the model into a new folder, weights as `dtype`. ModelError where config.json has no words for it.

    A model without a tokenizer gets a stand-in that has a word for every id, since some engines insist on one.
    """
    config = hf_config(loaded.config, dtype)
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    tensors = {
        # Slots are rows of packed tensors, and safetensors wants each tensor to own its memory.
        name: slot.to("cpu", dtype, copy=True).contiguous()
        for name, slot in slots_of(loaded.weights, loaded.config).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _save_tokenizer(loaded, folder)


def hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as published checkpoints have it (the form of transformers 4, which 5 and other engines read)."""
    raw: dict[str, Any] = {
        "architectures": [MODEL_TYPES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config.rope),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **_window(config),
    }
    if parse_hf_config(raw, {}, "config.json") != config:
        raise ModelError(f"a {config.architecture} of this form cannot be written as a Hugging Face config.json")
    return raw


def _window(config: ModelConfig) -> dict[str, Any]:
    window: dict[str, Any] = {"sliding_window": config.sliding_window}
    if config.architecture in ("qwen2", "qwen3") and config.sliding_window is not None:
        window |= {"use_sliding_window": True, "max_window_layers": 0}
    return window


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    used = {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": (
            *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
            *("attention_factor", "mscale", "mscale_all_dim"),
        ),
    }[rope.kind]
    values = {name: value for name, value in dataclasses.asdict(rope).items() if name in used and value is not None}
    return {"rope_type": rope.kind, **values} if used else None


def _save_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    backend = loaded.tokenizer.backend if loaded.tokenizer else _stand_in(loaded.config.vocab_size)
    backend.save(str(folder / "tokenizer.json"))
    eos = next(iter(loaded.config.eos_token_ids), None)
    named = {} if eos is None else {"eos_token": backend.id_to_token(eos)}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def _stand_in(vocab_size: int) -> Backend:
    """A word for every id and no text: decoding costs what it costs, and encoding is for nobody."""
    backend = Backend(WordLevel({f" {id_}": id_ for id_ in range(vocab_size)}, unk_token=" 0"))
    backend.decoder = Fuse()
    return backend


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
