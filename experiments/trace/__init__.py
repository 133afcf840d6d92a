"""`fusebench trace`: cells under a profiler, read into kernel ledgers. See experiments/trace/command.py."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from experiments.trace import command

    return command.main(argv)
