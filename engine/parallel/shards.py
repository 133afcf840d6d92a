"""What each rank holds of a model.

Heads and intermediate channels are dealt out: QKV, gate and up by rows (column-parallel), o and down by columns
(row-parallel: their products are partial sums). The LM head is cut along the vocabulary. Norms and the embedding, of
which a step reads a few rows, are everyone's. The bias of a row-parallel layer is rank 0's alone, so that it is added
once.
"""

from dataclasses import replace

from torch import Tensor

from engine.config import ModelConfig
from engine.errors import UserError
from engine.parallel.ranks import Ranks

BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
BY_COLUMNS = ("o_proj", "down_proj")


def shard_config(config: ModelConfig, size: int) -> ModelConfig:
    """The model that one of `size` ranks runs. UserError where heads or channels cannot be dealt out evenly.

    Key and value heads are not replicated, so there must be at least one for each rank.
    """
    for key in ("num_kv_heads", "num_heads", "intermediate_size"):
        if getattr(config, key) % size:
            raise UserError(
                f"tensor_parallel_size={size} does not divide the model's {key}={getattr(config, key)}; "
                f"take a size that divides {config.num_kv_heads}, {config.num_heads} and {config.intermediate_size}"
            )
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=config.num_kv_heads // size,
        intermediate_size=config.intermediate_size // size,
    )


def shard(name: str, whole: Tensor, ranks: Ranks) -> Tensor:
    """A rank's part of the tensor of that checkpoint name."""
    module, kind = name.split(".")[-2:]
    if module in BY_ROWS:
        return ranks.part(whole, 0)
    if module in BY_COLUMNS and kind == "weight":
        return ranks.part(whole, 1)
    return whole
