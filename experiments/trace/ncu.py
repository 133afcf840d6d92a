"""Nsight Compute on this machine: where it is, what it is told, and what it means when it comes back empty-handed.

FUSEBENCH_NCU names the ncu to use: the command, or a folder that holds it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError
from experiments.trace.counters import METRICS
from experiments.trace.tools import candidates, last_words, run_tool

COMMAND = "FUSEBENCH_NCU"
INSTALL_PLACES = (
    "/opt/nvidia/nsight-compute/*/ncu",
    "/usr/local/cuda*/bin/ncu",
    "/usr/local/cuda*/nsight-compute-*/ncu",
    "/usr/lib/nsight-compute/ncu",
)
INSIDE_FOLDER = ("ncu", "bin/ncu", "target/linux-*/ncu", "nsight-compute*/ncu", "nsight-compute/*/ncu")
INSTALL = f"install Nsight Compute (it comes with the CUDA toolkit), or name it with ncu=PATH or {COMMAND}"
# ncu runs each kernel many times: the 370 of a decode step of the baseline (28 layers) took it more than 80 s. The
# first 128 are nine of its layers, or most of a fused variant's 145; what comes last, the LM head, is left out.
MOST_LAUNCHES = 128
# What it prints, and the mend. The texts are those of its 2019 to 2026 releases, as quoted in public logs.
MENDS = {
    "ERR_NVGPUCTRPERM": (
        "this user may not read the GPU's counters: run as root, load the driver with "
        "NVreg_RestrictProfilingToAdminUsers=0, or give the container the capability SYS_ADMIN "
        "(https://developer.nvidia.com/ERR_NVGPUCTRPERM)"
    ),
    "Failed to find metric": "this ncu does not know a metric that is asked for; use the one of the CUDA toolkit",
    "driver resource was unavailable": "another profiler or DCGM holds the counters: stop it (dcgmi profile --pause)",
    "No kernels were profiled": "no kernel ran inside the profiler window: does the worker run on the GPU?",
}


@dataclass(frozen=True)
class Ncu:
    """An ncu that answers."""

    path: Path
    version: str

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """It starts as it is."""
        return dict(base)


def find_ncu(configured: str | None = None, environ: Mapping[str, str] = os.environ) -> Ncu:
    """The ncu asked for, else the one on PATH, else the newest in the usual places. UserError says what to install."""
    asked = configured or environ.get(COMMAND)
    for path in candidates("ncu", asked, environ, INSIDE_FOLDER, INSTALL_PLACES):
        output = run_tool([str(path), "--version"], environ, 60)
        if match := re.search(r"\d{4}(\.\d+)+", output.stdout):
            return Ncu(path, match[0])
        if asked:
            raise UserError(f"{asked} does not run as ncu: {last_words(output, 'no answer to --version')}")
    raise UserError(f"{asked}: there is no ncu; {INSTALL}" if asked else f"ncu is not on this machine; {INSTALL}")


def profile_arguments(output: Path) -> list[str]:
    """What `ncu` is told: every kernel inside the worker's window, those of CUDA graphs one by one, clocks left alone.

    Each kernel is run again for every group of counters, caches flushed before it (ncu's default): nothing here is a
    time to be compared with a measured one.
    """
    return [
        "--profile-from-start=off",
        "--target-processes=all",
        "--graph-profiling=node",
        "--clock-control=none",
        "--cache-control=all",
        f"--launch-count={MOST_LAUNCHES}",
        f"--metrics={','.join(METRICS.values())}",
        "--force-overwrite",
        f"--export={output}",
    ]


def raw_page(ncu: Ncu, report: Path) -> str:
    """A report's kernels and metrics as CSV. UserError with ncu's last words where there is none."""
    arguments = ["--import", str(report), "--csv", "--page", "raw", "--print-units", "base"]
    done = run_tool([str(ncu.path), *arguments], os.environ, 600)
    if done.returncode or not done.stdout.strip():
        raise UserError(f"ncu could not read its own report: {last_words(done, f'exit code {done.returncode}')}")
    return done.stdout


def why_nothing(log: str) -> str:
    """What a log explains about a missing report; empty where it explains nothing."""
    return next((f"ncu counted nothing: {mend}" for words, mend in MENDS.items() if words in log), "")
