"""The paged key-value cache: its tensors, and how many pages a device can hold."""

import torch

from engine.batch import LayerCache
from engine.config import EngineConfig, ModelConfig
from engine.errors import UserError

CPU_POOL_BYTES = 4 * 2**30  # A laptop has other things to do.


def allocate(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[LayerCache]:
    """Zeroed pages, [num_blocks, block_size, num_kv_heads, head_dim] for keys and for values, layer by layer."""
    shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
    pages = torch.zeros(shape, dtype=dtype, device=device)
    return [LayerCache(layer[0], layer[1]) for layer in pages]


def wanted_blocks(engine: EngineConfig) -> int:
    """Blocks with which every sequence could grow to max_model_len at once."""
    return engine.max_num_seqs * -(-engine.max_model_len // engine.block_size)


def fitting_blocks(engine: EngineConfig, model: ModelConfig, dtype: torch.dtype, activation_bytes: int) -> int:
    """Blocks that fit beside the weights and `activation_bytes` of the largest steps and their graphs."""
    block_bytes = engine.block_size * model.kv_bytes_per_token(dtype.itemsize)
    device = torch.device(engine.device)
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        spare_bytes = total_bytes * (1 - engine.gpu_memory_utilization)
        room_bytes = free_bytes - spare_bytes - activation_bytes
    else:
        room_bytes = CPU_POOL_BYTES
    blocks = int(room_bytes // block_bytes)
    if blocks < 1:
        raise UserError(
            f"no memory is left for a KV cache: one block of {engine.block_size} tokens takes {block_bytes:,} bytes, "
            f"{int(room_bytes):,} are free; lower max_num_batched_tokens or max_num_seqs, "
            "or raise gpu_memory_utilization"
        )
    return min(blocks, wanted_blocks(engine))
