"""The table of other engines: what stands in their times, beside those times."""

from experiments.reporting.formats import Column, Value
from experiments.reporting.rows import Analysis
from experiments.reporting.tables.registry import VARIANT, Content, table


@table("Other engines: what their times include", "faster")
def peers(analysis: Analysis) -> Content | None:
    """A peer is timed from outside, by the host's clock around calls of its generate. Its decode step is the difference
    of two calls with answers of different lengths, over the steps that the longer one has more; its prefill is a call
    for one token; each call has fresh prompts. Our own cells step the engine and have neither sampling parameters nor
    output objects per call."""
    columns = (VARIANT, Column("fact", "What"), Column("value", "Value"))
    rows: list[tuple[Value, ...]] = [
        (variant, fact.replace("_", " "), value)
        for variant, facts in analysis.run.info.peers.items()
        for fact, value in facts.items()
    ]
    return Content(columns, rows)
