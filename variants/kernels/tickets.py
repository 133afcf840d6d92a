"""Counters with which programs find out who of them comes last."""

from functools import cache

import torch
from torch import Tensor

# More tiles of work than this fill any GPU without being split.
MAX_TICKETS = 4096


@cache
def tickets(device: torch.device) -> Tensor:
    """MAX_TICKETS counters, zero between launches. One stream at a time may use them: the engine has one a device."""
    return torch.zeros(MAX_TICKETS, dtype=torch.int32, device=device)
