"""What a sweep says at its end: its table, and how to go on."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config import ExperimentConfig

LOG_WIDTH = 120


def how_to_go_on(arguments: Sequence[str], run_id: str) -> str:
    """The command that measures what the run still lacks."""
    kept = [argument for argument in arguments if not argument.startswith("resume=")]
    return shlex.join(["fusebench", "sweep", *kept, f"resume={run_id}"])


def show_table(config: ExperimentConfig, run_id: str) -> None:
    """Print the run's results."""
    from rich.console import Console

    from experiments.reporting.run import load_run
    from experiments.reporting.terminal import show

    # A log has no width of its own, and rich would squeeze the table into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    show(load_run(Path(config.results_dir), config.name, run_id), console)
    print(f"The report: fusebench report experiment={config.name} run={run_id}")
