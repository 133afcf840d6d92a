"""Which device a rank runs on."""

import torch

from engine.errors import UserError


def rank_device(name: str, rank: int, size: int) -> torch.device:
    """On a CPU the same for all ranks, else one GPU each, from the one that `name` means on."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is no device: give cpu or cuda") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no GPU here: give cpu, or mend the driver")
    if size == 1:
        return device
    first, count = device.index or 0, torch.cuda.device_count()
    if first + size > count:
        raise UserError(f"tensor_parallel_size={size} needs {size} GPUs from {name} on, and torch sees {count} in all")
    return torch.device("cuda", first + rank)
