"""Three engines' schedulers and block managers under the same traffic, as committed by `fusebench traffic`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.formats import Column, Kind, Value, provenance

TRAFFIC = Path("docs/data/traffic.json")


@block
def traffic_memory(root: Path) -> str:
    """Block use, waste, reuse and recomputation of three engines under the same traffic."""
    columns = (
        Column("traffic", "Traffic"),
        Column("engine", "Engine"),
        Column("block_size", "Tokens a block", Kind.COUNT),
        Column("mean_used", "Pool in use", Kind.PERCENT),
        Column("mean_waste", "Pool wasted", Kind.PERCENT),
        Column("reused", "Reused / needed", Kind.NUMBER),
        Column("computed", "Computed / needed", Kind.NUMBER),
        Column("preemptions", "Preemptions", Kind.COUNT),
    )
    return _traffic(
        root,
        columns,
        lambda row: (
            row["block_size"],
            row["mean_used"],
            row["mean_waste"],
            row["reused_tokens"] / row["needed_tokens"],
            row["computed_tokens"] / row["needed_tokens"],
            row["preemptions"],
        ),
    )


@block
def traffic_waiting(root: Path) -> str:
    """Steps until all is answered, and how long requests that had begun stood still."""
    columns = (
        Column("traffic", "Traffic"),
        Column("engine", "Engine"),
        Column("answered", "Answered", Kind.COUNT),
        Column("steps", "Steps", Kind.COUNT),
        Column("stalled_steps", "Stalled steps, all requests", Kind.COUNT),
        Column("longest_stall", "Longest stall, steps", Kind.COUNT),
    )
    return _traffic(
        root, columns, lambda row: (row["answered"], row["steps"], row["stalled_steps"], row["longest_stall"])
    )


@usable(TRAFFIC)
def _traffic(root: Path, columns: tuple[Column, ...], values: Callable[[Mapping[str, Any]], tuple[Value, ...]]) -> str:
    kept = read(root, TRAFFIC)
    order = {name: i for i, name in enumerate(kept["traffics"])}
    rows = sorted(kept["rows"], key=lambda row: order[row["traffic"]])
    body = [(row["traffic"], _engine(row), *values(row)) for row in rows]
    caption = f"`fusebench traffic`, {provenance(kept['commit'], kept['created'])}; the same on any machine."
    return markdown(columns, body, caption)


def _engine(row: Mapping[str, Any]) -> str:
    name = {"ours": "fusebench", "nano_vllm": "nano-vLLM", "vllm": "vLLM"}[row["engine"]]
    return name if row["engine"] == "ours" else f"{name} {row['version']}"


@block
@usable(TRAFFIC)
def traffics(root: Path) -> str:
    """What the traffics are."""
    lines = [f"- `{name}`: {text}" for name, text in read(root, TRAFFIC)["traffics"].items()]
    return "\n".join(lines) + "\n"
