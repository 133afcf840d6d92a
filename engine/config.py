"""What a model is (`ModelConfig`) and how the engine runs it (`EngineConfig`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import UserError

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
COUNTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "tensor_parallel_size")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding parameters, as in a Hugging Face config's `rope_scaling`.

    `kind` says which of the optional fields count: `linear`, `dynamic`: factor; `llama3`: factor, low_freq_factor,
    high_freq_factor, original_max_position_embeddings; `yarn`: factor, original_max_position_embeddings, beta_fast,
    beta_slow, attention_factor (computed from the factor, mscale and mscale_all_dim when None), truncate.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder: RMSNorm, GQA attention with RoPE, gated SiLU MLP. Covers Llama, Mistral, Qwen2 and Qwen3."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    rope: RopeConfig = RopeConfig()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def q_size(self) -> int:
        """Width of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key (or value) projection."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of the packed query, key and value projection."""
        return self.q_size + 2 * self.kv_size

    @property
    def num_positions(self) -> int:
        """Positions that it can tell apart; a config need not count those that YaRN adds."""
        original = self.rope.original_max_position_embeddings or 0
        stretched = int(self.rope.factor * original) if self.rope.kind == "yarn" else 0
        return max(self.max_position_embeddings, stretched)

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of KV cache that one token takes over all layers."""
        return 2 * self.num_layers * self.kv_size * dtype_bytes


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    `model` is a Hugging Face folder or hub id, a GGUF file, or the name of a file under configs/model (seeded random
    weights). `num_kv_blocks=None` sizes the pool for `max_num_seqs` sequences of `max_model_len` tokens, bounded by
    what is free once the weights and CUDA graphs are there, less the share of all memory that `gpu_memory_utilization`
    leaves to others. `overlap` prepares and launches a step before the tokens of the one before it are read back.
    `tensor_parallel_size` processes share the model, each with a GPU of its own from `device` on (on a CPU they only
    prove that the answers are right). A `device` with an index becomes the process's current one: the engines of a
    process share it.
    """

    model: str | Path
    dtype: str = "bfloat16"
    device: str = "cpu"
    max_model_len: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16_384
    block_size: int = 64
    num_kv_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    overlap: bool = True
    seed: int = 0
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
        for key in COUNTS:
            if not _is_count(getattr(self, key)):
                raise UserError(f"{key}={getattr(self, key)!r} must be a whole number of at least 1")
        if self.num_kv_blocks is not None and not _is_count(self.num_kv_blocks):
            raise UserError(
                f"num_kv_blocks={self.num_kv_blocks!r} must be a whole number of at least 1, or None for as many as fit"
            )
        for key in ("enable_prefix_caching", "overlap"):
            if not isinstance(getattr(self, key), bool):
                raise UserError(f"{key}={getattr(self, key)!r} must be True or False")
        if not isinstance(self.seed, int):
            raise UserError(f"seed={self.seed!r} must be a whole number")
        if self.block_size & (self.block_size - 1) or self.block_size < 16:
            raise UserError(f"block_size={self.block_size} must be a power of two of at least 16")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UserError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}: every running sequence gets a token each step"
            )
        if not (isinstance(self.gpu_memory_utilization, int | float) and 0 < self.gpu_memory_utilization <= 1):
            raise UserError(f"gpu_memory_utilization={self.gpu_memory_utilization!r} must lie in (0, 1]")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
