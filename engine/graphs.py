"""CUDA graphs over whole steps: captured, replayed, and counted where a step goes without one."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.inputs import Layout
from engine.ranges import span

logger = logging.getLogger("fusebench.engine")


class GraphKey(NamedTuple):
    """What a captured step is good for: its shapes are padded to the layout.

    A step of `tokens_only` ends in token ids, any other in logits.
    """

    layout: Layout
    tokens_only: bool

    def __str__(self) -> str:
        return "-".join(map(str, (self.layout.kind, *self.layout, self.tokens_only)))


@dataclass
class Graph:
    """A captured step and what it leaves behind: token ids, and the logits where sampling happens outside."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor | None
    logits: Tensor | None


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Where steps run before their capture. One for all: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


Step = Callable[[], tuple[Tensor | None, Tensor | None]]


@dataclass
class GraphCache:
    """Graphs by key, captured on first use. All share one memory pool: steps never run side by side."""

    enabled: bool
    graphs: dict[GraphKey, Graph] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)
    num_hits: int = 0
    num_captures: int = 0

    def __post_init__(self) -> None:
        self._pool: Any = None

    def fall_back(self, reason: str) -> None:
        """Count a step that runs without a graph; the first of each reason is logged."""
        if reason not in self.fallbacks:
            logger.info("step without a CUDA graph: %s", reason)
        self.fallbacks[reason] += 1

    def capture(self, key: GraphKey, step: Step) -> Graph:
        """Capture `step`, which reads static buffers only; it runs once before, so that all is compiled."""
        stream = _side_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads may go on: NCCL's watchdog asks after the collectives of the run before.
        capturing = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with span(f"capture/{key}"), capturing:
            tokens, logits = step()
        self.graphs[key] = Graph(graph, tokens, logits)
        self.num_captures += 1
        return self.graphs[key]

    def replay(self, key: GraphKey) -> Graph:
        """Launch a captured step."""
        captured = self.graphs[key]
        captured.graph.replay()
        self.num_hits += 1
        return captured

    def clear(self) -> None:
        """Drop all graphs, to capture them anew (inside a trace's window, say)."""
        self.graphs.clear()
        # A pool dies with the last graph that uses it.
        self._pool = None
