"""The tables of a report; importing this package registers them all."""

from experiments.reporting.tables import evidence, peers, serving, speed, traces
from experiments.reporting.tables.registry import TABLES, build_tables

__all__ = ["TABLES", "build_tables", "evidence", "peers", "serving", "speed", "traces"]
