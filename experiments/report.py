"""`fusebench report experiment=NAME [run=RUN_ID]`: stored results to pages, tables and figures.

Needs no GPU and no torch. Writes reports/<experiment>/{index.html, report.md, summary.json, tables/, figures/}; the
same results give the same bytes.

    experiment=NAME    which experiment; its results lie under results/NAME
    run=RUN_ID         which run; its latest unless given
    results_dir=DIR    where results lie (results)
    reports_dir=DIR    where reports go (reports)
    --terminal         print the headline table and a small heat map instead of writing files
    --docs             refresh the generated blocks of README.md and docs/ from reports/headline, then stop
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line import run_command
from experiments.errors import UserError


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    experiment: str = ""
    run: str = "latest"
    results_dir: str = "results"
    reports_dir: str = "reports"
    terminal: bool = False
    docs: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown."""
    flags, values = set(), {}
    keys = ("experiment", "run", "results_dir", "reports_dir")
    for argument in arguments:
        key, is_override, value = argument.partition("=")
        if argument in ("--terminal", "--docs"):
            flags.add(argument)
        elif is_override and key in keys and value:
            values[key] = value
        else:
            known = ", ".join([*(f"{k}=" for k in keys), "--terminal", "--docs"])
            raise UserError(f"report does not know {argument!r}; it takes {known}")
    options = Options(**values, terminal="--terminal" in flags, docs="--docs" in flags)
    if not options.experiment and not options.docs:
        raise UserError("which experiment? give experiment=NAME, for instance experiment=demo")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Make a report; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    return run_command(lambda: _report(parse(arguments)))


def _report(options: Options) -> int:
    if options.docs:
        from experiments.reporting.docs import refresh

        changed = refresh()
        print("\n".join(f"refreshed {path}" for path in changed) or "every generated block is fresh")
        return 0
    from experiments.reporting.files import build, write
    from experiments.reporting.kernels import find_kernels
    from experiments.reporting.run import load_run

    if file := find_kernels(Path(options.results_dir), options.experiment, options.run):
        return _report_kernels(file, options)
    run = load_run(Path(options.results_dir), options.experiment, options.run)
    if options.terminal:
        from experiments.reporting.terminal import show

        show(run)
        return 0
    folder = Path(options.reports_dir) / run.info.experiment
    write(build(run), folder)
    counts = run.status_counts()
    print(f"{folder / 'index.html'}: run {run.info.run_id}, {counts['ok']:,} of {counts['planned']:,} cells ok")
    return 0


def _report_kernels(file: Path, options: Options) -> int:
    """The report of a run of `fusebench kernels`."""
    from experiments.reporting.files import write
    from experiments.reporting.kernels import build_kernels, load_kernels, show_kernels

    run = load_kernels(file)
    if options.terminal:
        show_kernels(run)
        return 0
    folder = Path(options.reports_dir) / options.experiment
    write(build_kernels(run), folder)
    print(f"{folder / 'report.md'}: run {run.stamp.run_id}, {len(run.rows):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
