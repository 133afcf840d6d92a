"""From loaded weights to the runner of one rank. All ranks build at the same time and meet in the collectives."""

from dataclasses import replace

import torch

from engine import kv_cache
from engine.config import EngineConfig, ModelConfig
from engine.model import Model
from engine.parallel.ranks import Ranks
from engine.parallel.shards import shard_config
from engine.rope import rope_tables
from engine.runner import Runner
from engine.variant import Variant
from engine.weights import ModelWeights


def build_runner(
    config: EngineConfig, variant: Variant, model: ModelConfig, weights: ModelWeights, ranks: Ranks
) -> Runner:
    """A runner with its KV cache. `model` is the whole model's config, `weights` are this rank's, prepared."""
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    mine = shard_config(model, ranks.size)
    if mine.sliding_window is not None and mine.sliding_window >= config.max_model_len:
        # It hides nothing, and kernels that know no window are faster.
        mine = replace(mine, sliding_window=None)
    prepared = Model(mine, weights, *rope_tables(mine, config.max_model_len, device))

    def runner(num_blocks: int) -> Runner:
        caches = kv_cache.allocate(mine, num_blocks, config.block_size, dtype, device)
        return Runner(prepared, variant, caches, config, ranks)

    if config.num_kv_blocks is not None:
        return runner(config.num_kv_blocks)
    activation_bytes = 0
    if device.type == "cuda":
        # Largest steps and graphs over a one-block cache: what they take is not the cache's to have.
        # What `prepare` has given up would be reused, and not counted.
        torch.cuda.empty_cache()
        before_bytes = torch.cuda.memory_reserved(device)
        runner(1).run_largest()
        torch.cuda.synchronize(device)
        activation_bytes = torch.cuda.memory_reserved(device) - before_bytes
        torch.cuda.empty_cache()
    return runner(ranks.least(kv_cache.fitting_blocks(config, mine, dtype, activation_bytes)))
