"""What the documents show between their `generated` markers: each block a function of files that are committed.

Importing this package registers them all.
"""

from experiments.reporting.blocks import (
    comparisons,
    evidence,
    headline,
    offline,
    peers,
    searches,
    sizes,
    tables_of_run,
    timings,
    traffic,
    whole_steps,
)
from experiments.reporting.blocks.registry import BLOCKS

__all__ = [
    "BLOCKS",
    "comparisons",
    "evidence",
    "headline",
    "offline",
    "peers",
    "searches",
    "sizes",
    "tables_of_run",
    "timings",
    "traffic",
    "whole_steps",
]
