"""What a sweep says at its end: its table, and how to go on."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.config import ExperimentConfig


def how_to_go_on(arguments: Sequence[str], run_id: str) -> str:
    """The command that measures what the run still lacks."""
    kept = [argument for argument in arguments if not argument.startswith("resume=")]
    return shlex.join(["fusebench", "sweep", *kept, f"resume={run_id}"])


def show_table(config: ExperimentConfig, run_id: str) -> None:
    """Print the run's results."""
    from experiments.reporting.run import load_run
    from experiments.reporting.terminal import show

    show(load_run(Path(config.results_dir), config.name, run_id))
    print(f"The report: fusebench report experiment={config.name} run={run_id}")
