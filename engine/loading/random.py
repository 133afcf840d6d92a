"""Seeded random weights of a model's shape, for measuring without a checkpoint."""

import hashlib

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.loading.names import allocate
from engine.weights import ModelWeights

STD = 0.02
NORM_STD = 0.1
DISTRIBUTION = f"normal(0, {STD}) matrices and biases, 1 + normal(0, {NORM_STD}) norms, rounded to bfloat16"


def random_weights(config: ModelConfig, dtype: torch.dtype, device: str | torch.device, seed: int) -> ModelWeights:
    """Draw every tensor from its own generator, seeded by `seed` and the tensor's name.

    The same weights therefore come out in every process, whatever the order. Values are bfloat16 numbers, as those of
    published checkpoints are, so models of different dtypes hold the same weights (float16 within its own rounding).
    Draws happen on the device, which keeps 8 billion parameters a matter of seconds on a GPU; CPU and CUDA draw
    different numbers.
    """
    allocation = allocate(config, dtype, device)
    for name, slot in allocation.slots.items():
        _fill(slot, name, seed)
    return allocation.weights


def _fill(slot: Tensor, name: str, seed: int) -> None:
    generator = torch.Generator(device=slot.device).manual_seed(_tensor_seed(name, seed))
    values = torch.empty(slot.shape, dtype=torch.float32, device=slot.device)
    if name.endswith("norm.weight"):
        values.normal_(1.0, NORM_STD, generator=generator)
    else:
        values.normal_(0.0, STD, generator=generator)
    slot.copy_(values.to(torch.bfloat16))


def _tensor_seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # A CPU generator takes 64 signed bits.
    return int.from_bytes(digest[:8], "little") >> 1
