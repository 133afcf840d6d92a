"""`fusebench report experiment=NAME [run=RUN_ID]`: stored results to pages, tables and figures.

Needs no GPU and no torch. Writes reports/<experiment>/{index.html, report.md, summary.json, tables/, figures/}; the
same results give the same bytes.

    experiment=NAME    which experiment; its results lie under results/NAME
    run=RUN_ID         which run; its latest unless given
    runs=[RUN,RUN]     several runs side by side, instead: EXPERIMENT/RUN_ID, EXPERIMENT (its latest) or a run's folder;
                       runs of `fusebench kernels` become one
    name=NAME          where the report goes, under reports/: its experiment's name, or side_by_side for several runs
    results_dir=DIR    where results lie (results)
    reports_dir=DIR    where reports go (reports)
    --terminal         print the headline table and a small heat map instead of writing files
    --docs             refresh the generated blocks of README.md and docs/ from reports/headline, then stop
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line import run_or_help
from experiments.errors import UserError
from experiments.options import parse_options

TOGETHER = "side_by_side"


@dataclass(frozen=True)
class Options:
    """What was asked for; no run is the latest, no name the experiment's or side_by_side."""

    experiment: str = ""
    run: str = ""
    runs: tuple[str, ...] = ()
    name: str = ""
    results_dir: str = "results"
    reports_dir: str = "reports"
    terminal: bool = False
    docs: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown or does not go together."""
    options = parse_options(Options, "report", arguments)
    if options.docs:
        return options
    if options.runs and (options.experiment or options.run):
        raise UserError("give experiment=NAME for one run, or runs=[...] for several, not both")
    if len(options.runs) == 1:
        raise UserError(f"runs=[{options.runs[0]}] is one run; give two or more, or experiment=NAME run=RUN_ID")
    if not options.runs and not options.experiment:
        raise UserError("which experiment? give experiment=NAME, for instance experiment=demo")
    if not re.fullmatch(r"[\w-]*", options.name):
        raise UserError(f"name={options.name} may have letters, digits, - and _ only, for it names a folder")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Make a report; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: _report(parse(arguments)))


def _report(options: Options) -> int:
    if options.docs:
        from experiments.reporting.docs import refresh

        changed = refresh()
        print("\n".join(f"refreshed {path}" for path in changed) or "every generated block is fresh")
        return 0
    return _several(options) if options.runs else _one(options)


def _one(options: Options) -> int:
    from experiments.reporting.files import build, write
    from experiments.reporting.kernels import find_kernels
    from experiments.reporting.run import load_run

    if file := find_kernels(Path(options.results_dir), options.experiment, options.run or "latest"):
        return _report_kernels([file], options)
    run = load_run(Path(options.results_dir), options.experiment, options.run or "latest")
    if options.terminal:
        from experiments.reporting.terminal import show

        show(run)
        return 0
    folder = Path(options.reports_dir) / (options.name or run.info.experiment)
    write(build(run), folder)
    counts = run.status_counts()
    print(f"{folder / 'index.html'}: run {run.info.run_id}, {counts['ok']:,} of {counts['planned']:,} cells ok")
    return 0


def _report_kernels(files: Sequence[Path], options: Options) -> int:
    """The report of runs of `fusebench kernels`."""
    from experiments.kernel_records import merged
    from experiments.reporting.files import write
    from experiments.reporting.kernels import build_kernels, load_kernels, show_kernels

    run = merged(list(map(load_kernels, files)))
    if options.terminal:
        show_kernels(run)
        return 0
    folder = Path(options.reports_dir) / (options.name or options.experiment or TOGETHER)
    write(build_kernels(run), folder)
    print(f"{folder / 'report.md'}: run {run.stamp.run_id}, {len(run.rows):,} rows")
    return 0


def _kernels_among(options: Options) -> list[Path]:
    """The files of runs of `fusebench kernels` among those asked for; UserError where they are mixed with sweeps."""
    from experiments.reporting.kernels import locate_kernels

    files = [file for name in options.runs if (file := locate_kernels(Path(options.results_dir), name))]
    if files and len(files) < len(options.runs):
        raise UserError("runs has sweeps and runs of `fusebench kernels`; a report is of one kind")
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("runs names a run twice")
    return files


def _several(options: Options) -> int:
    from experiments.reporting.files import build_together, write
    from experiments.reporting.run import locate_run, read_folder

    if files := _kernels_among(options):
        return _report_kernels(files, options)
    paths = [locate_run(Path(options.results_dir), name) for name in options.runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("runs names a run twice")
    runs = [read_folder(path) for path in paths]
    if options.terminal:
        from experiments.reporting.terminal import show

        for run in runs:
            print(f"\n{run.info.experiment}/{run.info.run_id}")
            show(run)
        return 0
    folder = Path(options.reports_dir) / (options.name or TOGETHER)
    write(build_together(runs), folder)
    print(f"{folder / 'index.html'}: {', '.join(f'{r.info.experiment}/{r.info.run_id}' for r in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
