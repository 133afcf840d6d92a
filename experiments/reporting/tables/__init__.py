"""The tables of a report; importing this package registers them all."""

from experiments.reporting.tables import counters, evidence, speed
from experiments.reporting.tables.registry import TABLES, build_tables

__all__ = ["TABLES", "build_tables", "counters", "evidence", "speed"]
