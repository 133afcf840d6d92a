"""Config, weights and tokenizer of a GGUF file, dequantized.

llama.cpp stores the query and key rows of `llama` models in the order of its own RoPE, the two halves of a head
interleaved; here they are put back into the order of Hugging Face.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.loading.gguf_config import ROPE_FREQS, parse_gguf_config
from engine.loading.gguf_file import GgufFile, open_gguf
from engine.loading.gguf_tokenizer import gguf_tokenizer
from engine.loading.names import EMBED, FINAL_NORM, LM_HEAD, allocate, check_tensors
from engine.loading.tokenizer import Tokenizer
from engine.parallel.ranks import ALONE, Ranks
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


def load_gguf(
    path: Path, dtype: torch.dtype, device: str | torch.device, ranks: Ranks = ALONE
) -> tuple[ModelConfig, ModelWeights, Tokenizer]:
    """Read config, one rank's weights (as `dtype` on `device`) and tokenizer.

    Raises ModelError for a truncated file, another architecture, an unknown tokenizer, and any missing, surplus or
    misshapen tensor.
    """
    file = open_gguf(path)
    config = gguf_config(file)
    tokenizer = gguf_tokenizer(file.metadata, config.eos_token_ids, str(path))
    return config, _load_weights(file, config, dtype, device, ranks), tokenizer


def gguf_config(file: GgufFile) -> ModelConfig:
    """The model that an opened file holds."""
    rope_freqs_D2 = _read(file, ROPE_FREQS) if ROPE_FREQS in file.tensors else None
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return parse_gguf_config(file.metadata, shapes, rope_freqs_D2, str(file.path))


def hf_name(gguf_name: str) -> str:
    """llama.cpp's name of a tensor -> Hugging Face's; an unknown name stays as it is."""
    if gguf_name in GLOBAL_NAMES:
        return GLOBAL_NAMES[gguf_name]
    match = LAYER_NAME.fullmatch(gguf_name)
    if match is None or match[2] not in LAYER_NAMES:
        return gguf_name
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"


def _load_weights(
    file: GgufFile, config: ModelConfig, dtype: torch.dtype, device: str | torch.device, ranks: Ranks
) -> ModelWeights:
    stored = {hf_name(name): name for name in file.tensors if name != ROPE_FREQS}
    expected = allocate(config, dtype, "meta").slots
    check_tensors(expected, {ours: file.tensors[name].shape for ours, name in stored.items()}, str(file.path))

    def read(name: str) -> Tensor:
        values = _read(file, stored[name])
        if config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            return _separate_halves(values, config.head_dim)
        return values

    return allocate(config, dtype, device, ranks).fill(read)


def _read(file: GgufFile, name: str) -> Tensor:
    tensor = file.tensors[name]
    try:
        return tensor.read()
    except NotImplementedError as error:
        kind = tensor.quantization.name
        raise ModelError(f"{file.path}: {name} is stored as {kind}, which the gguf package cannot read") from error


def _separate_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows: (pair, half) -> (half, pair). [heads * D, ...] -> the same."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
