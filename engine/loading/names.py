"""Which tensors a model has, what each is called in a Hugging Face checkpoint, and where it goes in the packed weights.

`allocate` is the one table of names, shapes and places: safetensors, GGUF and random weights all fill its slots.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.parallel.ranks import ALONE, Columns, Ranks
from engine.parallel.shards import shard, shard_config
from engine.weights import LayerWeights, Linear, ModelWeights

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"
# Old checkpoints carry RoPE's frequencies as a buffer; they are computed from the config instead.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
MAX_NAMED = 4


@dataclass(frozen=True)
class Allocation:
    """Uninitialised weights of one rank, and under each checkpoint name the view of them which that tensor fills."""

    weights: ModelWeights
    slots: dict[str, Tensor]
    ranks: Ranks = ALONE

    def fill(self, read: Callable[[str], Tensor]) -> ModelWeights:
        """The weights, each slot filled with its part of what `read` gives: whole tensors by name, one at a time."""
        for name, slot in self.slots.items():
            slot.copy_(shard(name, read(name), self.ranks))
        return self.weights


def allocate(config: ModelConfig, dtype: torch.dtype, device: str | torch.device, ranks: Ranks = ALONE) -> Allocation:
    """Allocate one rank's packed weights; every element belongs to exactly one slot, though a slot may be a part only.

    `config` is that of the whole model. On device `meta` it costs no memory.
    """
    mine = shard_config(config, ranks.size)
    embed_VH = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
    head_NH = ranks.part(embed_VH, 0)
    if not config.tie_word_embeddings:
        head_NH = torch.empty_like(head_NH)
    columns = Columns(ranks, config.vocab_size) if ranks.size > 1 else None
    weights = ModelWeights(
        embed_VH,
        tuple(_allocate_layer(mine, dtype, device, ranks) for _ in range(config.num_layers)),
        torch.empty(config.hidden_size, dtype=dtype, device=device),
        Linear(head_NH, columns=columns),
    )
    return Allocation(weights, slots_of(weights, mine), ranks)


def slots_of(weights: ModelWeights, config: ModelConfig) -> dict[str, Tensor]:
    """Checkpoint name -> the view of packed weights which that tensor fills; `config` is that of the weights."""
    slots = {EMBED: weights.embed_VH}
    if weights.final_norm_H is not None:
        slots[FINAL_NORM] = weights.final_norm_H
    if not config.tie_word_embeddings:
        slots[LM_HEAD] = weights.lm_head.weight_NK
    for index, layer in enumerate(weights.layers):
        slots |= {f"model.layers.{index}.{name}": slot for name, slot in _layer_slots(config, layer).items()}
    return slots


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Refuse a checkpoint whose tensors are not exactly those of the table.

    `found` maps each name to its shape. Buffers that old checkpoints carry are no surplus, and neither is the copy of
    a tied embedding under `lm_head.weight`. Raises ModelError that names tensors, expected and found shapes.
    """
    tied = LM_HEAD not in expected
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing {_named(f'{name} {_shape(expected[name].shape)}' for name in missing)}")
    surplus = [name for name in found if name not in expected and not is_ignored(name, tied)]
    if surplus:
        faults.append(f"unexpected {_named(f'{name} {_shape(found[name])}' for name in surplus)}")
    misshapen = [name for name, slot in expected.items() if name in found and tuple(slot.shape) != found[name]]
    if misshapen:
        pairs = (f"{n} expected {_shape(expected[n].shape)}, found {_shape(found[n])}" for n in misshapen)
        faults.append(f"misshapen {_named(pairs)}")
    if faults:
        raise ModelError(f"{source}: the tensors do not fit the config: {'; '.join(faults)}")


def is_ignored(name: str, tied: bool) -> bool:
    """Whether a checkpoint may carry this tensor although no slot takes it."""
    return name.endswith(IGNORED_SUFFIXES) or (tied and name == LM_HEAD)


def _allocate_layer(config: ModelConfig, dtype: torch.dtype, device: str | torch.device, ranks: Ranks) -> LayerWeights:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def linear(n: int, k: int, bias: bool) -> Linear:
        return Linear(empty(n, k), empty(n) if bias else None)

    def row_parallel(n: int, k: int, bias: bool) -> Linear:
        return replace(linear(n, k, bias and ranks.rank == 0), sum_over=ranks if ranks.size > 1 else None)

    hidden, intermediate = config.hidden_size, config.intermediate_size
    return LayerWeights(
        attn_norm_H=empty(hidden),
        qkv=linear(config.qkv_size, hidden, config.qkv_bias),
        q_norm_D=empty(config.head_dim) if config.qk_norm else None,
        k_norm_D=empty(config.head_dim) if config.qk_norm else None,
        o=row_parallel(hidden, config.q_size, config.o_bias),
        mlp_norm_H=empty(hidden),
        gate_up=linear(2 * intermediate, hidden, config.mlp_bias),
        down=row_parallel(hidden, intermediate, config.mlp_bias),
    )


def _layer_slots(config: ModelConfig, layer: LayerWeights) -> dict[str, Tensor]:
    """Checkpoint name within the layer -> the rows of the packed tensor that it fills."""
    q_end, k_end, v_end = config.q_size, config.q_size + config.kv_size, config.qkv_size
    gate_end, up_end = config.intermediate_size, 2 * config.intermediate_size
    norms = {
        "input_layernorm": layer.attn_norm_H,
        "self_attn.q_norm": layer.q_norm_D,
        "self_attn.k_norm": layer.k_norm_D,
        "post_attention_layernorm": layer.mlp_norm_H,
    }
    linears = {
        "self_attn.q_proj": (layer.qkv, slice(0, q_end)),
        "self_attn.k_proj": (layer.qkv, slice(q_end, k_end)),
        "self_attn.v_proj": (layer.qkv, slice(k_end, v_end)),
        "self_attn.o_proj": (layer.o, slice(None)),
        "mlp.gate_proj": (layer.gate_up, slice(0, gate_end)),
        "mlp.up_proj": (layer.gate_up, slice(gate_end, up_end)),
        "mlp.down_proj": (layer.down, slice(None)),
    }
    slots = {f"{name}.weight": norm for name, norm in norms.items() if norm is not None}
    for name, (linear, rows) in linears.items():
        slots[f"{name}.weight"] = linear.weight_NK[rows]
        if linear.bias_N is not None:
            slots[f"{name}.bias"] = linear.bias_N[rows]
    return slots


def _named(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more


def _shape(shape: Iterable[int]) -> str:
    return str(list(shape))
