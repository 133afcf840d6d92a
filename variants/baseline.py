"""The baseline itself, so that it is chosen like any other."""

from collections.abc import Mapping

from engine import Runtime, Variant

SWITCHES: dict[str, bool] = {}


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """nano-vLLM's kernels, nothing replaced."""
    return Variant(name, runtime=runtime, switches=switches)
