"""Weights that rank 0 holds whole, handed round."""

import torch

from engine.config import ModelConfig
from engine.loading.names import allocate, check_tensors, slots_of
from engine.parallel.ranks import Ranks
from engine.parallel.shards import shard
from engine.weights import ModelWeights


def share_weights(model: ModelConfig, whole: ModelWeights | None, dtype: torch.dtype, ranks: Ranks) -> ModelWeights:
    """Each rank's part of rank 0's weights, tensor by tensor; the others give None.

    Raises ModelError where the weights are not as they are loaded: a variant's `prepare` comes after.
    """
    wholes = allocate(model, dtype, "meta").slots
    held = {} if whole is None else slots_of(whole, model)
    if whole is not None:
        check_tensors(wholes, {name: tuple(x.shape) for name, x in held.items()}, "the weights given to the engine")
    mine = allocate(model, dtype, ranks.device, ranks)
    for name, meta in wholes.items():
        given = (
            held[name].to(ranks.device, dtype).contiguous()
            if whole is not None
            else torch.empty_like(meta, device=ranks.device)
        )
        tensor = ranks.broadcast(given)
        if name in mine.slots:
            mine.slots[name].copy_(shard(name, tensor, ranks))
    return mine.weights
