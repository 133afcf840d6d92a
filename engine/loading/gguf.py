"""Weights, config and tokenizer from one GGUF file, dequantized.

llama.cpp stores the query and key rows of `llama` models in the order of its own RoPE, the two halves of a head
interleaved; here they are put back into the order of Hugging Face.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.loading.gguf_config import ROPE_FREQS, parse_gguf_config
from engine.loading.gguf_tokenizer import gguf_tokenizer
from engine.loading.names import EMBED, FINAL_NORM, LM_HEAD, allocate, check_tensors
from engine.loading.tokenizer import Tokenizer
from engine.weights import ModelWeights

GLOBAL_NAMES = {"token_embd.weight": EMBED, "output_norm.weight": FINAL_NORM, "output.weight": LM_HEAD}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# What GGUFReader raises, depending on where a damaged file ends.
DAMAGE = (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError, struct.error)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file: its shape as rows of columns, and a reader of its float32 values."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, opened: metadata by key, tensors by llama.cpp's names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def load_gguf(
    path: Path, dtype: torch.dtype, device: str | torch.device
) -> tuple[ModelConfig, ModelWeights, Tokenizer]:
    """Read config, weights (as `dtype` on `device`) and tokenizer.

    Raises ModelError for a truncated file, another architecture, an unknown tokenizer, and any missing, surplus or
    misshapen tensor.
    """
    file = open_gguf(path)
    rope_freqs = file.tensors[ROPE_FREQS].read() if ROPE_FREQS in file.tensors else None
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = parse_gguf_config(file.metadata, shapes, rope_freqs, str(path))
    tokenizer = gguf_tokenizer(file.metadata, config.eos_token_ids, str(path))
    return config, _load_weights(file, config, dtype, device), tokenizer


def open_gguf(path: Path) -> GgufFile:
    """Read the header; tensors stay in the file until asked for."""
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: _stored_tensor(path, tensor) for tensor in reader.tensors}
    except DAMAGE as error:
        raise ModelError(f"{path} is truncated, damaged or no GGUF file ({error}); fetch it again") from error
    return GgufFile(path, metadata, tensors)


def hf_name(gguf_name: str) -> str:
    """llama.cpp's name of a tensor -> Hugging Face's; an unknown name stays as it is."""
    if gguf_name in GLOBAL_NAMES:
        return GLOBAL_NAMES[gguf_name]
    match = LAYER_NAME.fullmatch(gguf_name)
    if match is None or match[2] not in LAYER_NAMES:
        return gguf_name
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"


def _stored_tensor(path: Path, tensor: Any) -> StoredTensor:
    def read() -> Tensor:
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ModelError(
                f"{path}: {tensor.name} is quantized as {kind}, which the gguf package cannot read"
            ) from error
        # Unquantized tensors are read-only views of the file, which torch does not take.
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))

    return StoredTensor(tuple(int(size) for size in reversed(tensor.shape)), read)


def _load_weights(file: GgufFile, config: ModelConfig, dtype: torch.dtype, device: str | torch.device) -> ModelWeights:
    stored = {hf_name(name): tensor for name, tensor in file.tensors.items() if name != ROPE_FREQS}
    expected = allocate(config, dtype, "meta").slots
    check_tensors(expected, {name: tensor.shape for name, tensor in stored.items()}, str(file.path))
    allocation = allocate(config, dtype, device)
    for name, slot in allocation.slots.items():
        values = stored[name].read()
        if config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = separate_halves(values, config.head_dim)
        slot.copy_(values)
    return allocation.weights


def separate_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows: (pair, half) -> (half, pair). [heads * D, ...] -> the same."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
