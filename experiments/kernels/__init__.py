"""One kernel at a time: `fusebench kernels`. See experiments/kernels/command.py."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from experiments.kernels import command

    return command.main(argv)
