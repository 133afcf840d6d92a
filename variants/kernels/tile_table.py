"""Measured choices by GPU and shape, written by `fusebench tune` to tiles.json; where there is none, tiles.py decides.

    gpus.<name>.tiles."<kernel> <N>x<K>".<rows>       the tile of that class of rows, if it beat the heuristic's
    gpus.<name>.fused_up_to_rows."<kernel> <N>x<K>"   the most rows at which fused is no slower than what it replaces
    gpus.<name>.fused_from_rows."<kernel> <N>x<K>"    the fewest at which the kernel for many rows is (may be left out)
    gpus.<name>.apart."<kernel> <N>x<K>"              classes of rows between at which it is not (may be left out)

N and K are the weight's, gate and up together; elements have two bytes. Kernels that norm were measured behind
`linear_add`, as the fused engine runs them. A class of rows holds all up to the next power of two. A lookup depends on
nothing but GPU, kernel and shape: a captured graph and an eager launch choose the same. What is on trial goes first:
`fusebench tune by=step` captures a step's graph within `trying`.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from engine.kernels._triton import next_power_of_2, num_sms
from variants.kernels.attention_cut import Cut
from variants.kernels.tiles import Tile, linear_tile

SCHEMA = 1
FILE = resources.files("variants.kernels") / "tiles.json"
logger = logging.getLogger("fusebench.variants")


@dataclass(frozen=True)
class GpuTable:
    """What was measured on one GPU."""

    tiles: Mapping[str, Mapping[str, Tile]] = field(default_factory=dict)
    fused_up_to_rows: Mapping[str, int] = field(default_factory=dict)
    fused_from_rows: Mapping[str, int] = field(default_factory=dict)
    apart: Mapping[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What comes before table, bounds and heuristics, on any device and at any number of rows.

    `tiles` and `fused`, whether the kernel runs at all, are by the table's keys; `fused` knows `attention` and
    `whole_heads` too (see dispatch.py), and `cut` is how attention cuts its keys.
    """

    tiles: Mapping[str, Tile] = field(default_factory=dict)
    fused: Mapping[str, bool] = field(default_factory=dict)
    cut: Cut | None = None


_on_trial = Trial()


def on_trial() -> Trial:
    """What is tried now: nothing, outside of `trying`."""
    return _on_trial


@contextmanager
def trying(trial: Trial) -> Iterator[None]:
    """Inside the block the trial decides. Graphs that were captured outside of it do not know: drop them before."""
    global _on_trial
    before, _on_trial = _on_trial, trial
    try:
        yield
    finally:
        _on_trial = before


def key_of(kernel: str, n: int, k: int) -> str:
    """A shape's key."""
    return f"{kernel} {n}x{k}"


def shape_of(key: str) -> tuple[str, int, int]:
    """(kernel, N, K) of a shape's key."""
    kernel, shape = key.split()
    n, k = map(int, shape.split("x"))
    return kernel, n, k


def rows_class(rows: int) -> int:
    """The class of a number of rows, named by its largest member."""
    return next_power_of_2(rows)


def read_table(text: str) -> dict[str, GpuTable]:
    """The table by GPU name. ValueError where it is of another version."""
    content = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"tiles.json has schema {content.get('schema')}, this version reads schema {SCHEMA}")
    return {name: _measured(gpu) for name, gpu in content["gpus"].items()}


def _measured(gpu: Mapping[str, Any]) -> GpuTable:
    tiles = {key: {rows: Tile(**tile) for rows, tile in found.items()} for key, found in gpu["tiles"].items()}
    return GpuTable(tiles, gpu["fused_up_to_rows"], gpu.get("fused_from_rows", {}), gpu.get("apart", {}))


@cache
def measured_on(gpu: str) -> GpuTable:
    """What is known of a GPU; said once where that is nothing."""
    table = read_table(FILE.read_text(encoding="utf-8"))
    if gpu not in table:
        logger.warning("no tiles were measured on %s: a heuristic chooses them; `fusebench tune` measures", gpu)
    return table.get(gpu, GpuTable())


@cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def measured_for(x: Tensor) -> GpuTable:
    """What is known of the GPU that holds `x`; nothing for a CPU, or for elements that are not of two bytes."""
    return measured_on(_gpu_name(x.get_device())) if x.is_cuda and x.element_size() == 2 else GpuTable()


def known_tile(kernel: str, x_MK: Tensor, weight_NK: Tensor) -> Tile | None:
    """The tile on trial, else the measured one; None where the choice is the heuristic's."""
    (m, k), n = x_MK.shape, weight_NK.shape[0]
    key = key_of(kernel, n, k)
    return on_trial().tiles.get(key) or measured_for(x_MK).tiles.get(key, {}).get(str(rows_class(m)))


def choose_tile(kernel: str, x_MK: Tensor, weight_NK: Tensor, matrices: int = 1, can_split: bool = False) -> Tile:
    """The tile of x @ weight.T, whose rows are `matrices` weights on top of each other: measured, else the heuristic's.

    `can_split` where the caller can add parts of K.
    """
    if known := known_tile(kernel, x_MK, weight_NK):
        return known
    (m, k), n = x_MK.shape, weight_NK.shape[0]
    return linear_tile(m, n // matrices, k, x_MK.element_size(), num_sms(x_MK), matrices, can_split)
