"""`fusebench compare RUN_A RUN_B`: is B faster or slower than A, cell by cell? Needs no GPU and no torch.

    fusebench compare headline/20261120-101500-0a1b2c3 headline      a run against the latest
    fusebench compare headline variant=compiled,fused                two variants of one run, paired within rounds
    fusebench compare base/ new/ margin=2% --markdown                for a pull request

A run is EXPERIMENT/RUN_ID, EXPERIMENT (its latest run) or the path of a run's folder.

    variant=A,B        compare variant A of the first run with B of the second (or of the same)
    margin=1%          a regression is a cell that is slower by more than this
    results_dir=DIR    where results lie (results)
    --markdown         print Markdown
    --force            compare unlike runs all the same, every line marked

Exit code 1 where a cell regressed: its verdict is `slower` and its speed-up is below 1 - margin, or it was measured in
A and failed in B. 2 for bad input, runs that are not alike, and where nothing could be compared; otherwise 0.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.command_line import run_or_help
from experiments.comparing.comparison import Pair, Side, compare
from experiments.comparing.likeness import changed, unlike
from experiments.comparing.show import Shown, markdown, print_terminal
from experiments.config import BASELINE
from experiments.errors import UserError
from experiments.manifest import Manifest
from experiments.options import parse_options
from experiments.reporting.formats import ratio
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import locate_run, read_folder
from experiments.stats import geometric_mean
from experiments.store import read_manifest

FORCED = "UNLIKE: "


@dataclass(frozen=True)
class Options:
    """What was asked for: one run or two, and the variants of either side where they are named."""

    runs: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    margin: float = 0.01
    results_dir: str = "results"
    markdown: bool = False
    force: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is wrong."""
    runs = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    options = parse_options(Options, "compare", [argument for argument in arguments if argument not in runs])
    options = replace(options, runs=(*options.runs, *runs))
    if len(options.runs) not in (1, 2) or len(options.variant) > 2:
        raise UserError("compare takes RUN_A RUN_B, or one run and variant=A,B")
    if len(options.runs) == 1 and len(set(options.variant)) != 2:
        raise UserError(f"compare {options.runs[0]} with what? give a second run, or variant=A,B")
    if not 0 < options.margin < 1:
        raise UserError(f"margin={options.margin:g} must lie between 0 and 100 %, as in margin=1%")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: _compare(parse(arguments)))


@dataclass(frozen=True)
class Loaded:
    """A run with its manifest."""

    manifest: Manifest
    analysis: Analysis


def _compare(options: Options) -> int:
    paths = [locate_run(Path(options.results_dir), name) for name in options.runs]
    loaded = [Loaded(read_manifest(path), analyse(read_folder(path))) for path in paths]
    before, after = loaded[0], loaded[-1]
    if before is not after and before.manifest.plan == after.manifest.plan and _name(before) == _name(after):
        raise UserError(f"both runs are {_name(before)}; give two, or one and variant=A,B")
    why_not = _unlike(before, after)
    if why_not and not options.force:
        raise UserError(f"the runs are not alike: {'; '.join(why_not)} (--force compares them all the same)")
    first, last = (options.variant[0], options.variant[-1]) if options.variant else (None, None)
    pairs = compare(_side(before, first), _side(after, last), options.margin, mixed=options.force)
    sides = (f"A: {_described(before, first)}", f"B: {_described(after, last)}")
    remarks = tuple(_remarks(before, after, why_not, pairs))
    shown = Shown(sides, remarks, pairs, options.margin, FORCED if why_not else "")
    if options.markdown:
        print(markdown(shown))
    else:
        print_terminal(shown)
    if not shown.regressions and not any(pair.speedup for pair in pairs):
        raise UserError("nothing could be compared: no cell is ok on both sides")
    return 1 if shown.regressions else 0


def _unlike(before: Loaded, after: Loaded) -> list[str]:
    if before is after:
        return []
    kernels = [" and ".join(sorted({r.kernels for r in run.analysis.rows if r.kernels})) for run in (before, after)]
    ran = [f"kernels were {kernels[0]} and are {kernels[1]}"] if all(kernels) and kernels[0] != kernels[1] else []
    return [*unlike(before.manifest, after.manifest), *ran]


def _side(run: Loaded, variant: str | None) -> Side:
    known = run.analysis.run.variants
    if variant is not None and variant not in known:
        raise UserError(
            f"variant={variant} is not in run {run.manifest.run_id}; there are: {', '.join(known) or 'none'}"
        )
    return Side(run.analysis, variant)


def _name(run: Loaded) -> str:
    return f"{run.manifest.experiment}/{run.manifest.run_id}"


def _described(run: Loaded, variant: str | None) -> str:
    m = run.manifest
    dirty = " with uncommitted changes" if m.dirty else ""
    machine = m.gpu or m.machine.get("cpu") or m.device
    of = f"{variant} of " if variant else ""
    return f"{of}{_name(run)}, {machine}, {m.dtype}, commit {m.commit[:12]}{dirty}, {m.created}"


def _remarks(before: Loaded, after: Loaded, why_not: Sequence[str], pairs: Sequence[Pair]) -> Iterator[str]:
    """What the reader must know beside the numbers."""
    for side, run in (("A", before), ("B", after)):
        yield from (f"problem in reading {side}: {problem}" for problem in run.analysis.run.problems)
    if before is after:
        yield "paired within rounds; B over A is above 1 where B is faster"
        return
    if why_not:
        yield f"NOT ALIKE, compared by --force: {'; '.join(why_not)}"
    if differs := changed(before.manifest, after.manifest):
        yield f"changed between them: {'; '.join(differs)}"
    yield "two runs share no rounds: an interval holds the noise between rounds, not what else changed between sessions"
    levels = [p.speedup.value for p in pairs if p.speedup and p.names == (BASELINE, BASELINE)]
    if levels:
        yield f"the {BASELINE} itself: {ratio(geometric_mean(levels))} B over A, geometric mean of {len(levels)} cells"


if __name__ == "__main__":
    sys.exit(main())
