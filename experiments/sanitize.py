"""`fusebench sanitize`: every kernel under compute-sanitizer, a small launch at a time.

fusebench sanitize
fusebench sanitize tools=[memcheck] sections=[attention,engine]

Each section (experiments/kernels/launched.py) runs once without a tool, which compiles everything, then under each:

    memcheck    accesses out of bounds or misaligned; every tensor has an allocation of its own (no caching, but for
                `engine`, whose graphs need it), so that its end is a bound
    racecheck   hazards between the threads of a block in shared memory; it has three times as long
    synccheck   barriers that not all threads reach, or that are not initialised

The last two take `engine` brief, and watch no kernels in it but this project's. Two sections are about the tools:
`controls` are kernels that are right by the book, so that a report on them is a false one, and `planted` are two races
that racecheck must find (experiments/kernels/sanitizer_controls.py).

Several run side by side: nothing is timed. It needs NVIDIA's compute-sanitizer, from PATH, the CUDA toolkit or
sanitizer=PATH; pip has newer ones (nvidia-cuda-sanitizer-api). Writes results/sanitize/RUN_ID/sanitize.json, anew after
each; exit code 1 where a tool found something (in `planted`, nothing) or did not end.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.command_line import run_or_help
from experiments.durable import make_new_folder
from experiments.environment import python_path
from experiments.errors import UserError
from experiments.kernel_records import PLANTED, SANITIZE, SCHEMA, SanitizeRun, Watched, new_stamp, write_run
from experiments.options import choose, parse_options, usage
from experiments.trace.tools import candidates, run_tool

TOOLS = ("memcheck", "racecheck", "synccheck")
ENGINE = "engine"
SECTIONS = (
    "norm_linear", "linear_add", "gate_up_silu", "lm_head", "qkv_post", "attention", "prefill", ENGINE, "controls",
    PLANTED,
)  # fmt: skip
# Our kernels, and none of C++, whose names are mangled.
OURS = ("--kernel-name", "regex=^_[^Z]")
INSTALL_PLACES = ("/usr/local/cuda*/bin/compute-sanitizer", "/opt/nvidia/*/compute-sanitizer")
INSIDE_FOLDER = ("compute-sanitizer", "bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer")
# Its exit code where it found something: none of Python's.
FOUND = 9
MOST_LINES = 8
# The kernel that a report begins with; further ones are what it raced with.
REPORTED = re.compile(r"=+ +(?:\w+: Race reported between \w+ access )?at (?:void )?([\w:]+)[^+\n]*\+0x")
SUMMARY = re.compile(r"=+ (?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: .*\((\d+) errors?, (\d+) warnings?\))")


@dataclass(frozen=True)
class Options:
    """What can be set on the command line; empty is all there are."""

    tools: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    sanitizer: str = ""
    at_once: int = 12
    timeout_s: float = 60.0
    results_dir: str = "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Watch; returns the exit code."""
    return run_or_help(argv, usage(__doc__, Options), lambda arguments: run(arguments))


def parse(arguments: Sequence[str]) -> Options:
    """Options, all tools and sections in place of none."""
    options = parse_options(Options, "sanitize", arguments)
    tools, sections = choose("tools", options.tools, TOOLS), choose("sections", options.sections, SECTIONS)
    return replace(options, tools=tools, sections=sections)


def run(arguments: Sequence[str]) -> int:
    """Every section under every tool, side by side; what has ended is kept."""
    options = parse(arguments)
    path, version = find_sanitizer(options.sanitizer or None)
    # Where the tool lies is this machine's own; its version is kept.
    asked = [word for word in arguments if not word.startswith("sanitizer=")]
    stamp = new_stamp(shlex.join(["fusebench", "sanitize", *asked]), "cuda")
    folder = make_new_folder(Path(options.results_dir) / SANITIZE / stamp.run_id)
    kept = SanitizeRun(SCHEMA, replace(stamp, run_id=folder.name), version)
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(max(1, options.at_once)) as pool:

        def under(tool: str, section: str) -> Watched:
            timeout_s = options.timeout_s * (1 if tool in ("memcheck", "synccheck") else 3)
            return watch(path, tool, section, Path(scratch), timeout_s)

        compiled = pool.map(lambda section: under("", section), options.sections)
        rows = {("", row.section): row for row in compiled if not row.ended}
        for done in as_completed([pool.submit(under, *pair) for pair in product(options.tools, options.sections)]):
            row = done.result()
            rows[row.tool, row.section] = row
            kept = replace(kept, rows=tuple(sorted(rows.values(), key=_order)))
            write_run(folder, SANITIZE, kept)
    for row in kept.rows:
        print("\n    ".join((in_words(row), *row.said)))
    print(folder / f"{SANITIZE}.json")
    return 0 if all(row.as_it_should for row in kept.rows) else 1


def find_sanitizer(asked: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Path, str]:
    """(where it is, its version); UserError where none answers."""
    for path in candidates("compute-sanitizer", asked, environ, INSIDE_FOLDER, INSTALL_PLACES):
        if match := re.search(r"\d{4}(\.\d+)+", run_tool([str(path), "--version"], environ, 60).stdout):
            return path, match[0]
    raise UserError("sanitize: no compute-sanitizer answers here; it comes with the CUDA toolkit, or sanitizer=PATH")


def watch(sanitizer: Path, tool: str, section: str, scratch: Path, timeout_s: float) -> Watched:
    """A section under a tool (or under none), and what it said."""
    counts, began = scratch / f"{tool}.{section}.json", time.monotonic()
    brief = section == ENGINE and tool in ("racecheck", "synccheck")
    program = [sys.executable, "-m", "experiments.kernels.launched", *["--brief"][:brief], section, str(counts)]
    watched = [str(sanitizer), "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"] if tool else []
    watched += OURS if brief else ()
    environ = os.environ | {"PYTHONPATH": python_path()}
    if tool == "memcheck" and section != "engine":
        environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        done = run_whole([*watched, *program], environ, timeout_s)
    except subprocess.TimeoutExpired:
        return Watched(tool, section, {}, said=(f"it took longer than {timeout_s:g} s",), seconds=timeout_s)
    launches = json.loads(counts.read_text()) if counts.is_file() else {}
    errors, warnings, said = what_it_said(done.stdout) if tool else (0, 0, ())
    # A program that ended early was not watched to its end, whatever the tool counted.
    if done.returncode not in (0, FOUND) or not launches:
        errors, said = None, said or tuple((done.stdout + done.stderr).strip().splitlines()[-MOST_LINES:])
    reported = dict(Counter(REPORTED.findall(done.stdout))) if tool else {}
    return Watched(tool, section, launches, errors, warnings, said, time.monotonic() - began, reported)


def run_whole(command: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program; TimeoutExpired once it and all that it started are killed."""
    with subprocess.Popen(
        command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # What a tool watches is a process of its own: it would keep the GPU, and our pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def what_it_said(text: str) -> tuple[int | None, int, tuple[str, ...]]:
    """(errors, None without a summary; warnings; the first lines about them) of compute-sanitizer's output."""
    found = [tuple(int(number or 0) for number in groups) for groups in SUMMARY.findall(text)]
    errors, warnings = sum(e + r for e, r, _ in found), sum(w for *_, w in found)
    lines = [line.strip("= ") for line in text.splitlines() if line.startswith("=") and not SUMMARY.match(line)]
    said = tuple(line for line in lines if line and not line.startswith("COMPUTE-SANITIZER"))[:MOST_LINES]
    return (errors if found else None), warnings, said


def _order(row: Watched) -> tuple[int, int]:
    """Without a tool first, then tool by tool."""
    return TOOLS.index(row.tool) if row.tool else -1, SECTIONS.index(row.section)


def in_words(row: Watched) -> str:
    """One line for the terminal."""
    ended = "did not end" if row.errors is None else f"{row.errors} errors, {row.warnings} warnings"
    launches = f"{sum(row.launches.values())} launches of {len(row.launches)} kernels"
    return f"{row.tool or 'compiling'} {row.section}: {launches}, {ended}, {row.seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
