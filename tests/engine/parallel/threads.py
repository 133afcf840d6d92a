"""Ranks as threads of one process, each with its own end of a gloo group: real collectives without real processes."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from engine.parallel.ranks import Ranks

T = TypeVar("T")


def on_ranks(size: int, task: Callable[[Ranks], T]) -> list[T]:
    """What `task` returns on each of `size` connected ranks."""
    store, results = HashStore(), dict[int, T]()

    def run(rank: int) -> None:
        ranks = Ranks(rank, size)
        ranks.connect(store, torch.device("cpu"))
        results[rank] = task(ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(size)]
