"""`fusebench doctor`: what this machine has and lacks, and the mend for each. Starts no engine and imports no torch.

Exit code 0 when a sweep can run here, 1 when it cannot.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from experiments.command_line import run_or_help
from experiments.compose import compose
from experiments.environment import find_gpu, package_version, run_quietly
from experiments.errors import UserError
from experiments.fetch import MODELS, cache_dir, cached_model
from experiments.throttling import throttled
from experiments.trace.ncu import INSTALL as NCU_INSTALL
from experiments.trace.ncu import find_ncu
from experiments.trace.nsys import INSTALL as NSYS_INSTALL
from experiments.trace.nsys import INSTALL_NVTX, NEWEST_NVTX_FOR_OLD_NSYS, find_nsys, importer_beside, mend_importer
from experiments.trace.tools import numbers

PYTHON = (3, 11)
LITTLE_SPACE_BYTES = 2 * 2**30


class Level(StrEnum):
    """How bad: `lacks` leaves something out, `broken` keeps sweeps from running."""

    OK = "ok"
    NOTE = "note"
    LACKS = "lacks"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `mend` says what to do about it."""

    level: Level
    what: str
    mend: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis; returns the exit code."""
    return run_or_help(argv, __doc__, _main)


def parse(arguments: Sequence[str]) -> None:
    """UserError for any argument."""
    if arguments:
        raise UserError(f"doctor takes no arguments, not {arguments[0]!r}")


def _main(arguments: Sequence[str]) -> int:
    parse(arguments)
    findings = diagnose()
    print("\n".join(line for finding in findings for line in _lines(finding)))
    return 1 if any(finding.level is Level.BROKEN for finding in findings) else 0


def diagnose() -> list[Finding]:
    """Every finding, in the order of what depends on what."""
    checks = (_python, _packages, _gpu, _nsys, _ncu, _nvtx, _model, _space)
    return [finding for check in checks for finding in check()]


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.level:7}{finding.what}"
    if finding.mend:
        yield f"{'':7}-> {finding.mend}"


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding(Level.BROKEN, f"Python {found}", "make the environment with Python 3.11 or later")
    else:
        yield Finding(Level.OK, f"Python {found}")


def _packages() -> Iterator[Finding]:
    for name, oldest, needed in (("torch", (2, 11), True), ("triton", (3, 6), False), ("transformers", (5,), True)):
        found = package_version(name)
        wanted = f"{name}>={'.'.join(map(str, oldest))}"
        mend = f"python -m pip install '{wanted}'"
        if found is None:
            missing = f"{name} is not installed" + (
                "" if needed else ": only the kernels' plain-PyTorch twins run here"
            )
            yield Finding(Level.BROKEN if needed else Level.LACKS, missing, mend)
        elif numbers(found) < oldest:
            yield Finding(Level.BROKEN, f"{name} {found} is older than {wanted}", mend)
        else:
            yield Finding(Level.OK, f"{name} {found}")


def _gpu() -> Iterator[Finding]:
    gpu = find_gpu()
    if gpu is None:
        blind = shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
        why = "CUDA_VISIBLE_DEVICES hides the GPU" if blind else "no NVIDIA GPU"
        mend = "unset CUDA_VISIBLE_DEVICES" if blind else "none needed for the twins; speed takes a GPU and its driver"
        yield Finding(Level.NOTE, f"{why}: variants run on the plain-PyTorch twins of their kernels", mend)
        return
    more = f", the first of {gpu.count}" if gpu.count > 1 else ""
    yield Finding(Level.OK, f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}{more}")
    if "+cpu" in (package_version("torch") or ""):
        yield Finding(
            Level.LACKS, "torch is a CPU build, so the GPU stays idle", "python -m pip install a CUDA build of torch"
        )
    if package_version("nvidia-ml-py") is None:
        mend = "python -m pip install 'fusebench[gpu]'"
        yield Finding(Level.LACKS, "nvidia-ml-py is not installed: clocks, power and energy go unrecorded", mend)
    yield from _gpu_state()


def _gpu_state() -> Iterator[Finding]:
    """Whatever else would spoil a measurement: other processes, heat."""
    others = (run_quietly("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader") or "").split()
    if others:
        mend = "wait for them, or end them: times are good only on a GPU of one's own"
        yield Finding(Level.NOTE, f"processes that use the GPU: {len(others)}", mend)
    query = "clocks.sm,clocks.max.sm,clocks_throttle_reasons.active,temperature.gpu"
    state = run_quietly("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
    fields = [field.strip() for field in (state or "").splitlines()[:1] for field in field.split(",")]
    if len(fields) != 4:
        return
    now_mhz, most_mhz, reasons, celsius = fields
    text = f"SM clock {now_mhz} of {most_mhz} MHz, {celsius} C"
    names = throttled(int(reasons, 16)) if reasons.startswith("0x") else []
    mend = "let it cool, or see to its power supply; a sweep records these reasons per cell"
    yield Finding(Level.NOTE, f"{text}, throttled ({', '.join(names)})", mend) if names else Finding(Level.OK, text)


def _nsys() -> Iterator[Finding]:
    try:
        nsys = find_nsys()
    except UserError as error:
        yield Finding(Level.LACKS, f"{_reason(error)}: no traces", NSYS_INSTALL)
        return
    what = f"nsys {nsys.version}"
    if importer_beside(nsys):
        yield Finding(Level.OK, f"{what}, with its importer")
    else:
        lacks = f"{what} cannot find its importer: it would leave a .qdstrm and no report"
        yield Finding(Level.LACKS, lacks, mend_importer(nsys))


def _reason(error: UserError) -> str:
    """Without the mend, which has a line of its own."""
    return str(error).partition("; ")[0]


def _ncu() -> Iterator[Finding]:
    try:
        yield Finding(Level.OK, f"ncu {find_ncu().version}")
    except UserError as error:
        what = f"{_reason(error)}: `fusebench trace profiler=ncu` cannot count inside kernels"
        yield Finding(Level.NOTE, what, NCU_INSTALL)


def _nvtx() -> Iterator[Finding]:
    found = package_version("nvtx")
    if found is None:
        yield Finding(Level.LACKS, "nvtx is not installed: traces have no ranges", INSTALL_NVTX)
    elif numbers(found) > NEWEST_NVTX_FOR_OLD_NSYS:
        yield Finding(Level.LACKS, f"nvtx {found} records no range at all under nsys 2022.4 and 2023.4", INSTALL_NVTX)
    else:
        yield Finding(Level.OK, f"nvtx {found}")


def _model() -> Iterator[Finding]:
    for name in MODELS:
        if cached_model(name):
            yield Finding(Level.OK, f"{name} is in the cache")
        else:
            mend = f"fusebench fetch {name}"
            yield Finding(Level.LACKS, f"{name} is not in the cache: seeded random weights of its shape instead", mend)


def _space() -> Iterator[Finding]:
    places: tuple[tuple[str, Callable[[], Path]], ...] = (
        ("results", lambda: Path(compose([]).results_dir)),
        ("model cache", cache_dir),
    )
    for name, place in places:
        folder = _existing(place())
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Finding(Level.BROKEN, f"the {name} folder cannot be written", f"chmod u+w {folder}, or name another")
        elif free < LITTLE_SPACE_BYTES:
            yield Finding(Level.LACKS, f"{free / 2**30:.1f} GiB free for the {name}", f"make room around {folder}")
        else:
            yield Finding(Level.OK, f"{free / 2**30:.0f} GiB free for the {name}")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.expanduser().resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


if __name__ == "__main__":
    sys.exit(main())
