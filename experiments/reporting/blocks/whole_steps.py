"""Whole steps timed apart from the headline: a kernel, its tiles or the way of launching changed, the rest as it is."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from experiments.reporting.blocks.registry import block, markdown, read, usable
from experiments.reporting.formats import Column, Kind, number

FEW_SEQUENCES = Path("docs/data/few_sequences.json")
MANY_SEQUENCES = Path("docs/data/many_sequences.json")
PREFILL_GRAPHS = Path("docs/data/prefill_graphs.json")
SHORT_CONTEXTS = Path("docs/data/short_contexts.json")
ROWS_BESIDE = Path("docs/data/rows_beside.json")
FEW_WARPS = Path("docs/data/few_warps.json")
PREFILL_CHOICES = Path("docs/data/prefill_choices.json")
PREFILL_PDL = Path("docs/data/prefill_pdl.json")
# Of the cuts that were tried at a place.
FASTEST = 3


@block
@usable(FEW_SEQUENCES)
def few_sequences(root: Path) -> str:
    """A decode step with attention by either kernel, and by its parts and rings."""
    found = read(root, FEW_SEQUENCES)
    columns = (
        Column("cell", "Step"),
        Column("call", "Call", Kind.COUNT),
        Column("triton", "Plain Triton, µs", Kind.NUMBER),
        Column("hopper", "For Hopper: parts x tiles of a ring, µs"),
    )
    # The fastest of each ring, and of all that is not for Hopper.
    places: dict[tuple[str, int], dict[str, float]] = {}
    for row in found["attention"]:
        how = f"{row['parts']} x {row['stages']}" if row["kernel"] == "hopper" else ""
        best = places.setdefault((_step(row), row["call"]), {})
        best[how] = min(row["us"], best.get(how, row["us"]))
    rows = []
    for (step, call), best in places.items():
        plain_us = best.pop("", None)
        tried = ", ".join(f"{ring}: {us:,.0f}" for ring, us in sorted(best.items(), key=lambda item: item[1]))
        rows += [(step, call, plain_us, tried)] if tried else []
    caption = f"{_drafted(found)} {found['note']}"
    return markdown(columns, rows, caption)


@block
@usable(FEW_SEQUENCES)
def few_row_tiles(root: Path) -> str:
    """What the heuristic's tiles of up to eight rows gave before, and give now."""
    found = read(root, FEW_SEQUENCES)
    columns = (
        Column("cell", "Step"),
        Column("call", "Call", Kind.COUNT),
        Column("before", "Old tiles, µs", Kind.NUMBER),
        Column("after", "New tiles, µs", Kind.NUMBER),
        Column("gain", "Speed-up", Kind.RATIO),
    )
    rows = [
        (_step(r), r["call"], r["before_us"], r["after_us"], r["before_us"] / r["after_us"])
        for r in found["tiles"]
        if r["what"] == "tiles"
    ]
    caption = _drafted(found)
    return markdown(columns, rows, caption)


@block
@usable(MANY_SEQUENCES)
def many_sequences(root: Path) -> str:
    """A decode step of more than 64 sequences with the baseline's attention, and with that for Hopper."""
    found = read(root, MANY_SEQUENCES)
    columns = (
        Column("cell", "Step"),
        Column("apart", "The baseline's kernels, µs", Kind.NUMBER),
        Column("ring_2", "For Hopper, rings of 2, µs", Kind.NUMBER),
        Column("ring_3", "Rings of 3, µs", Kind.NUMBER),
    )
    keys = ("apart_us", "ring_2_us", "ring_3_us")
    rows = [(_step(row), *(median(row[key]) for key in keys)) for row in found["attention"]]
    caption = _made(found)
    return markdown(columns, rows, caption)


@block
@usable(SHORT_CONTEXTS)
def short_contexts(root: Path) -> str:
    """A decode step with few tokens of context, by how attention cuts them."""
    found = read(root, SHORT_CONTEXTS)
    columns = (
        Column("cell", "Step"),
        Column("call", "Call", Kind.COUNT),
        Column("whole", "One part, µs", Kind.NUMBER),
        Column("halves", "Two parts, µs", Kind.NUMBER),
        Column("fastest", "The fastest three: parts x tokens, for Hopper parts x tiles of a ring"),
    )
    rows = []
    for row in found["steps"]:
        us = {cut: median(taken) for cut, taken in row["us"].items()}
        fastest = sorted(us.items(), key=lambda item: item[1])[:FASTEST]
        told = ", ".join(f"{cut}: {taken:,.0f}" for cut, taken in fastest)
        rows.append((_step(row), row["call"], us.get("1 x 128"), us.get("2 x 128"), told))
    return markdown(columns, rows, f"{_made(found)[:-1]}; {found['note']}")


@block
@usable(ROWS_BESIDE)
def rows_beside(root: Path) -> str:
    """A decode step with the heuristic's tiles, and with those that were found for a class of rows beside."""
    found = read(root, ROWS_BESIDE)
    columns = (
        Column("cell", "Step"),
        Column("before", "The heuristic's tiles, µs", Kind.NUMBER),
        Column("after", "Those of the class beside, µs", Kind.NUMBER),
        Column("gain", "Speed-up", Kind.RATIO),
    )
    times = [(_step(row), median(row["before_us"]), median(row["after_us"])) for row in found["tiles"]]
    return markdown(columns, [(step, old, new, old / new) for step, old, new in times], _made(found))


@block
@usable(FEW_WARPS)
def few_warps(root: Path) -> str:
    """A decode step with eight warps in held products, and with four in one of them."""
    found = read(root, FEW_WARPS)
    columns = (
        Column("cell", "Step"),
        Column("own", "Eight warps, µs", Kind.NUMBER),
        Column("qkv", "QKV with four, µs", Kind.NUMBER),
        Column("o", "o with four, µs", Kind.NUMBER),
    )
    rows = [(_step(row), *(median(row["us"][how]) for how in ("own", "qkv", "o"))) for row in found["steps"]]
    return markdown(columns, rows, _made(found))


@block
@usable(PREFILL_CHOICES)
def prefill_choices(root: Path) -> str:
    """A whole prefill by what its QKV product, and its gate and up, run as."""
    found = read(root, PREFILL_CHOICES)
    choices = {
        "as_it_was": "As it was",
        "whole_heads": "QKV with whole heads",
        "normed": "QKV normed",
        "apart": "QKV apart",
        "gate_up_apart": "Gate and up apart",
    }
    columns = (
        Column("model", "Model"),
        Column("tokens", "Tokens", Kind.COUNT),
        *(Column(key, f"{words}, ms (least)") for key, words in choices.items()),
    )
    rows = []
    for row in found["prefills"]:
        times = [row["ms"][key] for key in choices]
        told = [f"{number(ms['median'])} ({number(ms['least'])})" for ms in times]
        rows.append((row["model"], row["tokens"], *told))
    return markdown(columns, rows, _made(found))


@block
@usable(PREFILL_PDL)
def prefill_pdl(root: Path) -> str:
    """A prompt's first token with and without dependent launches in `fused`."""
    found = read(root, PREFILL_PDL)
    columns = (
        Column("model", "Model"),
        Column("tokens", "Tokens", Kind.COUNT),
        Column("baseline", "baseline, ms", Kind.NUMBER),
        Column("dependent", "fused, launched early, ms", Kind.NUMBER),
        Column("plain", "fused, ms", Kind.NUMBER),
    )
    rows = [
        (row["model"], row["tokens"], *(median(row["ttft_ms"][how]) for how in ("baseline", "dependent", "plain")))
        for row in found["prefills"]
    ]
    return markdown(columns, rows, f"{_made(found).removesuffix('.')}; {found['how']}.")


@block
@usable(PREFILL_GRAPHS)
def prefill_graphs(root: Path) -> str:
    """A long prompt's prefill launched kernel by kernel and as one graph."""
    found = read(root, PREFILL_GRAPHS)
    columns = (
        Column("model", "Model"),
        Column("tokens", "Tokens", Kind.COUNT),
        Column("variant", "Variant"),
        Column("how", "Launched"),
        Column("launch", "Host launches, ms", Kind.NUMBER),
        Column("wait", "Host waits, ms", Kind.NUMBER),
        Column("all", "To the first token, ms", Kind.NUMBER),
    )
    rows = [
        (r["model"], r["tokens"], r["variant"], r["how"], *(r["ms"][part] for part in ("launch", "wait", "all")))
        for r in found["prefills"]
    ]
    caption = _made(found)
    return markdown(columns, rows, caption)


def _step(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, {row['layers']} layers, {row['batch']} x {row['context']:,}"


def _drafted(found: Mapping[str, Any]) -> str:
    return f"{found['gpu']}, {found['date']}, commit {found['commit']} (its draft), by {found['by']}."


def _made(found: Mapping[str, Any]) -> str:
    return f"{found['gpu']}, {found['date']}, commit {found['commit']}, by {found['by']}."
