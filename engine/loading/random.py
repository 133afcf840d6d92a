"""Seeded random weights of a model's shape, for measuring without a checkpoint.

Matrices and biases are normal(0, STD), norms 1 + normal(0, NORM_STD).
"""

import hashlib

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.loading.names import allocate
from engine.parallel.ranks import ALONE, Ranks
from engine.weights import ModelWeights

STD = 0.02
NORM_STD = 0.1


def random_weights(
    config: ModelConfig, dtype: torch.dtype, device: str | torch.device, seed: int, ranks: Ranks = ALONE
) -> ModelWeights:
    """Draw every tensor from its own generator, seeded by `seed` and the tensor's name.

    The same weights therefore come out in every process, whatever the order. Values are bfloat16 numbers, as those of
    published checkpoints are, so models of different dtypes hold the same weights (float16 within its own rounding).
    Draws happen on the device, which keeps 8 billion parameters a matter of seconds on a GPU; CPU and CUDA draw
    different numbers. A rank draws whole tensors and keeps its part, so the model does not depend on their number.
    """
    wholes = allocate(config, dtype, "meta").slots
    return allocate(config, dtype, device, ranks).fill(lambda name: _draw(wholes[name].shape, device, name, seed))


def _draw(shape: torch.Size, device: str | torch.device, name: str, seed: int) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(_tensor_seed(name, seed))
    values = torch.empty(shape, dtype=torch.float32, device=device)
    if name.endswith("norm.weight"):
        values.normal_(1.0, NORM_STD, generator=generator)
    else:
        values.normal_(0.0, STD, generator=generator)
    return values.to(torch.bfloat16)


def _tensor_seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # A CPU generator takes 64 signed bits.
    return int.from_bytes(digest[:8], "little") >> 1
