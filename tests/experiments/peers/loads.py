"""Requests to load a peer, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import RuntimeConfig, VariantConfig
from experiments.messages import Load
from experiments.records import Point
from tests.experiments.measuring.sessions import PROTOCOL, load

FAKES = Path(__file__).with_name("fakes")
RUNTIMES = {
    "transformers": RuntimeConfig(cuda_graphs=False),
    "vllm": RuntimeConfig(compile=True),
    "nano_vllm": RuntimeConfig(compile=True),
}
# On a busy machine two calls must differ by many steps to differ at all; one pair of them is enough.
LONG = replace(PROTOCOL, steps_per_window=32, window_ms=10.0)


def points(model: str = "tiny") -> tuple[Point, ...]:
    """One point of each kind of cell."""
    return Point(model, "decode", 2, 24), Point(model, "prefill", 2, 24), Point(model, "offline", 3, 0)


def load_peer(kind: str, model: str = "tiny", path: str = "", **changes: Any) -> Load:
    """A request to load a tiny model in a peer, on the CPU in fp32."""
    variant = VariantConfig(kind, kind, runtime=RUNTIMES[kind], path=path)
    return replace(load(model, points=points(model), protocol=LONG, **changes), variant=variant)
