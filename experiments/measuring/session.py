"""One model in one variant, loaded once; a fresh engine for every cell.

An engine of its own per cell keeps cells apart (no cache, no graph, no scheduler state survives) and leaves an idle
worker with nothing on the GPU but its weights, so that several workers fit.
"""

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import Engine, EngineConfig, Runtime, Variant
from engine.loading import LoadedModel, load_model
from engine.parallel.followers import Followers
from engine.variant import keep
from engine.weights import ModelWeights
from experiments.compose import compose
from experiments.config import VariantConfig, WorkloadConfig
from experiments.environment import machine, resolve_device, resolve_dtype
from experiments.errors import UserError
from experiments.fetch import MODELS, cached_model
from experiments.messages import Load
from experiments.records import Point
from variants import build_variant

MAX_MODEL_LEN = 4096  # As engines are deployed, where a cell needs no more.
MAX_BATCHED_TOKENS = 16_384
HASHED_BYTES = 4096


def resolve_model(model: str, weights: str) -> str:
    """What the engine is to load: a cached real checkpoint where `weights` allows one and there is one."""
    if weights == "random" or model not in MODELS:
        if weights == "real" and not Path(model).exists() and "/" not in model:
            raise UserError(f"weights=real: {model} has no checkpoint here; give a folder, a GGUF file or a hub id")
        return model
    path = cached_model(model)
    if path is None and weights == "real":
        raise UserError(f"weights=real: {model} is not in the cache; run: fusebench fetch {model}")
    return model if path is None else str(path)


@dataclass
class Session:
    """A loaded model and the variant that runs it."""

    request: Load
    _followers: Followers | None = None

    def __post_init__(self) -> None:
        config = self.request.variant
        runtime = Runtime(config.runtime.cuda_graphs, config.runtime.compile, config.runtime.pdl)
        variant: Variant = build_variant(config.name, config.kind, config.switches, runtime)
        self.dtype: torch.dtype = getattr(torch, self.request.dtype)
        self.device = torch.device(self.request.device)
        source = resolve_model(self.request.model, self.request.weights)
        self.original: LoadedModel = load_model(source, self.dtype, self.device, self.request.seed)
        self._check_positions()
        self.weights_hash = hash_weights(self.original.weights)
        self.loaded, self.variant = self.original, variant
        if self.num_ranks == 1:
            prepared = variant.prepare(self.original.weights, self.original.config)
            self.loaded, self.variant = replace(self.original, weights=prepared), replace(variant, prepare=keep)

    @classmethod
    def alone(cls, variant: VariantConfig, point: Point, words: Sequence[str]) -> "Session":
        """Outside a sweep: drawn weights, on a GPU if there is one; `words` compose the workload and the protocol."""
        config = compose([*words, "protocol=full"])
        device = resolve_device("auto", machine())
        dtype = resolve_dtype("auto", device)
        workloads = tuple(config.workloads)
        return cls(
            Load(point.model, variant, device, dtype, "random", config.seed, (point,), workloads, config.protocol)
        )

    def _check_positions(self) -> None:
        """Every point must fit the model: the harness does not know the positions of a folder or a hub id."""
        positions = self.original.config.max_position_embeddings
        for point in self.request.points:
            workload = self.workloads[point.workload]
            longest = workload.longest(point.batch, point.length, self.request.seed)
            if workload.kind in ("prefill", "shared_prefix"):
                longest += 1  # The first token.
            if longest > positions:
                raise UserError(
                    f"workload.{point.workload}: {longest} tokens do not fit the {positions} positions of "
                    f"{point.model}; shorten lengths, or leave the model out"
                )

    @property
    def num_ranks(self) -> int:
        """Processes that share an engine of the variant; each prepares its own part of the weights."""
        return self.request.variant.runtime.tensor_parallel_size

    @property
    def followers(self) -> Followers | None:
        """The other ranks. The same for every engine, since starting them takes seconds, until a cell loses them."""
        if self.num_ranks > 1 and not (self._followers and self._followers.usable):
            self._followers = Followers(self.num_ranks, self.request.device)
        return self._followers

    @property
    def kernels(self) -> str:
        """Whether this machine runs the kernels or their plain-PyTorch twins."""
        return "compiled" if self.device.type == "cuda" else "twin"

    @cached_property
    def workloads(self) -> dict[str, WorkloadConfig]:
        """The run's workloads by name."""
        return {workload.name: workload for workload in self.request.workloads}

    @property
    def weights_words(self) -> str:
        """What the weights are."""
        kind = self.original.weights_kind
        return f"{kind}: {self.request.model}" + (f", seed {self.request.seed}" if kind == "random" else "")

    def drop_original(self) -> None:
        """Forget the weights as loaded: once verified, only the prepared ones are needed."""
        self.original = self.loaded
        free_memory(self.device)

    def contexts(self, point: Point) -> list[int]:
        """Tokens that each sequence of a decode point has in the cache."""
        return self.workloads[point.workload].contexts(point.batch, point.length, self.request.seed)

    def engine(
        self, num_seqs: int, tokens_per_seq: int, step_tokens: int, variant: Variant | None = None, **changes: Any
    ) -> Engine:
        """A fresh engine that holds `num_seqs` sequences of `tokens_per_seq` tokens; a step takes `step_tokens`.

        Another `variant` runs the weights as they were loaded, on one rank. `changes` are keys of the engine's config.
        """
        loaded = self.loaded if variant is None else self.original
        positions = loaded.config.max_position_embeddings
        block_size = EngineConfig.block_size
        config = EngineConfig(
            model=self.request.model,
            dtype=self.request.dtype,
            device=self.request.device,
            max_model_len=min(positions, max(MAX_MODEL_LEN, tokens_per_seq)),
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(num_seqs, min(step_tokens, MAX_BATCHED_TOKENS)),
            num_kv_blocks=num_seqs * -(-tokens_per_seq // block_size),
            enable_prefix_caching=False,
            seed=self.request.seed,
        )
        config = replace(config, **changes)
        if variant is not None:
            return Engine(config, variant, loaded)
        return Engine(replace(config, tensor_parallel_size=self.num_ranks), self.variant, loaded, self.followers)

    def prompts(self, point: Point, length: int, salt: int = 0) -> list[list[int]]:
        """Random prompts, the same for every variant: seeded by the run, the point and `salt`."""
        return draw_prompts(self.request.seed, point, length, self.loaded.config.vocab_size, salt)


def draw_prompts(seed: int, point: Point, length: int, vocab_size: int, salt: int) -> list[list[int]]:
    """`point.batch` prompts of `length` random tokens each."""
    key = f"{seed}/{point.model}/{point.workload}/{point.batch}/{point.length}/{salt}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    rows: list[list[int]] = torch.randint(vocab_size, (point.batch, length), generator=generator).tolist()
    return rows


def tensors(weights: ModelWeights) -> list[Tensor]:
    """Every tensor of a model, in a fixed order."""
    parts: list[Tensor | None] = [weights.embed_VH, weights.final_norm_H, weights.lm_head.weight_NK]
    for layer in weights.layers:
        parts += [layer.attn_norm_H, layer.q_norm_D, layer.k_norm_D, layer.mlp_norm_H]
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            parts += [linear.weight_NK, linear.bias_N]
    return [part for part in parts if part is not None]


def hash_weights(weights: ModelWeights) -> str:
    """A fingerprint of the weights as loaded: sha256 over the first 4 KiB of every tensor."""
    digest = hashlib.sha256()
    for tensor in tensors(weights):
        head = tensor.flatten()[: HASHED_BYTES // tensor.element_size()]
        digest.update(head.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def free_memory(device: torch.device) -> None:
    """Give cached memory back to the driver, for the other workers."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
