"""CUDA graphs without CUDA: the captured functions, run again.

Whatever a replay reads must lie in static buffers, so a captured function sees the step of the moment and nothing else.
"""

from typing import Any

from engine import Engine
from engine.graphs import Graph, GraphCache, GraphKey, Step
from tests.engine.tiny import tiny_engine


class Replayed(GraphCache):
    """Captures by keeping the function and what it returned; replays by running it into the same tensors."""

    def __post_init__(self) -> None:
        self.steps: dict[GraphKey, Step] = {}

    def capture(self, key: GraphKey, step: Step) -> Graph:
        """Run once to compile and once to capture, as on a GPU."""
        step()
        tokens, logits = step()
        self.graphs[key] = Graph(None, tokens, logits)  # type: ignore[arg-type]
        self.steps[key] = step
        self.num_captures += 1
        return self.graphs[key]

    def replay(self, key: GraphKey) -> Graph:
        """The outputs keep their addresses."""
        graph = self.graphs[key]
        for kept, new in zip((graph.tokens, graph.logits), self.steps[key](), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        self.num_hits += 1
        return graph


def graph_engine(**changes: Any) -> Engine:
    """A tiny engine that replays its steps."""
    engine = tiny_engine(**changes)
    engine.runner.graphs = Replayed(enabled=True)
    return engine
