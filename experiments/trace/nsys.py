"""Nsight Systems on this machine: where it is, which version, and whether what it leaves behind can be read.

FUSEBENCH_NSYS      the nsys to use: the command, or a folder that holds it (an unpacked archive)
FUSEBENCH_NSYS_LIB  LD_LIBRARY_PATH for that command, where its libraries lie apart
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.errors import UserError
from experiments.trace.tools import candidates, last_words, numbers, run_tool

COMMAND, LIBRARIES = "FUSEBENCH_NSYS", "FUSEBENCH_NSYS_LIB"
INSTALL_PLACES = (
    "/opt/nvidia/nsight-systems/*/target-linux-*/nsys",
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/opt/nvidia/nsight-systems-cli/*/target-linux-*/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/usr/lib/nsight-systems/bin/nsys",
    "/tmp/nsys/nsight-systems/target-linux-*/nsys",
)
INSIDE_FOLDER = ("nsys", "bin/nsys", "target-linux-*/nsys", "*/target-linux-*/nsys", "*/*/target-linux-*/nsys")
IMPORTER = "QdstrmImporter"
DEBIAN_HOST = Path("/usr/lib/nsight-systems/host-linux-x64")
OLDEST = (2022, 4)
# Later nvtx packages emit a payload that these nsys drop without a word: a trace without a single range.
NEWEST_NVTX_FOR_OLD_NSYS = (0, 2, 11)
LAST_NSYS_KNOWN_TO_DROP = (2023, 4)
INSTALL_NVTX = "python -m pip install nvtx==0.2.11"
INSTALL = (
    "install Nsight Systems (NVIDIA's package, or Debian's nsight-systems of non-free), name it with nsys=PATH or "
    f"{COMMAND}, or use profiler=torch"
)


@dataclass(frozen=True)
class Nsys:
    """An nsys that answers. `library_path` is the LD_LIBRARY_PATH it needs, or empty."""

    path: Path
    version: str
    library_path: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version, comparable."""
        return numbers(self.version)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what this nsys needs to start."""
        paths = [path for path in (self.library_path, base.get("LD_LIBRARY_PATH", "")) if path]
        return {**base, **({"LD_LIBRARY_PATH": os.pathsep.join(paths)} if paths else {})}

    def run(self, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run one of its sub-commands to the end."""
        return run_tool([str(self.path), *arguments], self.environment(os.environ), timeout_s)


def find_nsys(configured: str | None = None, environ: Mapping[str, str] = os.environ) -> Nsys:
    """The nsys asked for, else the one on PATH, else the newest in the usual places. UserError says what to install."""
    asked = configured or environ.get(COMMAND)
    for path in candidates("nsys", asked, environ, INSIDE_FOLDER, INSTALL_PLACES):
        libraries = environ.get(LIBRARIES) or _libraries_beside(path)
        found = Nsys(path, "", libraries)
        output = run_tool([str(path), "--version"], found.environment(environ), 60)
        match = re.search(r"\d{4}(\.\d+)+", output.stdout)
        if match and numbers(match[0]) < OLDEST:
            raise UserError(f"nsys {match[0]} is too old to follow kernels inside CUDA graphs; {INSTALL}")
        if match:
            return Nsys(path, match[0], libraries)
        if asked:
            raise UserError(f"{asked} does not run as nsys: {last_words(output, 'no answer to --version')}")
    raise UserError(f"{asked}: there is no nsys; {INSTALL}" if asked else f"nsys is not on this machine; {INSTALL}")


def _libraries_beside(path: Path) -> str:
    """The `lib` folder of an unpacked archive: <archive>/nsight-systems/target-linux-x64/nsys."""
    parents = path.resolve().parents
    beside = parents[2] / "lib" if len(parents) > 2 else path
    return str(beside) if (beside / "libssh.so.4").exists() and str(beside) not in ("/lib", "/usr/lib") else ""


def finish_report(nsys: Nsys, report: Path) -> Path:
    """The .nsys-rep of a capture that ended. Where nsys left only its raw stream, the importer is run by hand.

    UserError says what is missing: the importer (Debian ships it apart), or the whole capture.
    """
    if report.is_file():
        return report
    raw = report.with_suffix(".qdstrm")
    if not raw.is_file():
        raise UserError(
            "nsys captured nothing: the profiler window never opened. On a machine without a GPU there is no window; "
            "use profiler=torch. With one, look into the worker's log"
        )
    importer = find_importer(nsys)
    mend = mend_importer(nsys)
    if importer is None:
        raise UserError(f"nsys {nsys.version} left a .qdstrm and no report, for its importer is missing: {mend}")
    done = run_tool([str(importer), "-i", str(raw), "-o", str(report)], nsys.environment(os.environ), 600)
    if not report.is_file():
        raise UserError(f"{importer.name} could not read the capture: {last_words(done, 'no words')}; {mend}")
    return report


def find_importer(nsys: Nsys) -> Path | None:
    """The importer, beside nsys or where Debian puts it."""
    debian = DEBIAN_HOST / IMPORTER
    return importer_beside(nsys) or (debian if debian.is_file() else None)


def importer_beside(nsys: Nsys) -> Path | None:
    """The importer where nsys looks for it: in host-linux-* beside the folder of its own executable."""
    places = sorted(_root(nsys).glob(f"host-linux-*/{IMPORTER}"))
    return next((place for place in places if place.is_file()), None)


def mend_importer(nsys: Nsys) -> str:
    """How to get an importer to where nsys looks for it."""
    if (DEBIAN_HOST / IMPORTER).is_file():
        return f"ln -s {DEBIAN_HOST} {_root(nsys)}/"
    return "install the whole of Nsight Systems, its host part included"


def _root(nsys: Nsys) -> Path:
    return nsys.path.resolve().parent.parent


def export_sqlite(nsys: Nsys, report: Path, output: Path) -> Path:
    """Export a report; UserError with nsys' last words where that fails."""
    done = nsys.run("export", "-t", "sqlite", "--force-overwrite=true", "-o", str(output), str(report))
    if not output.is_file():
        raise UserError(f"nsys export failed on {report.name}: {last_words(done, f'exit code {done.returncode}')}")
    return output


def why_no_ranges(nsys_version: str) -> str:
    """What explains a trace that has kernels and not a single range, with the mend."""
    try:
        nvtx = version("nvtx")
    except PackageNotFoundError:
        return f"nvtx is not installed: {INSTALL_NVTX}"
    if numbers(nvtx) > NEWEST_NVTX_FOR_OLD_NSYS and numbers(nsys_version)[:2] <= LAST_NSYS_KNOWN_TO_DROP:
        return f"nsys {nsys_version} drops every range of nvtx {nvtx}: {INSTALL_NVTX}"
    return f"nsys {nsys_version} recorded none of the ranges of nvtx {nvtx}: did the worker push any?"
