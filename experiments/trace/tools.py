"""Finding NVIDIA's profilers on this machine, and running them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from experiments.errors import UserError


class Profiler(Protocol):
    """A profiler that starts programs."""

    @property
    def path(self) -> Path:
        """The command."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what the profiler needs to start."""


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2023.4.4.54-2344" is (2023, 4, 4, 54)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def candidates(
    name: str, asked: str | None, environ: Mapping[str, str], inside: Sequence[str], places: Sequence[str]
) -> Iterator[Path]:
    """Where a tool may be: as asked for (a command, or a folder in which `inside` is looked for), else on PATH, else in
    the usual `places`, the newest first."""
    if asked:
        path = Path(asked).expanduser()
        if path.is_dir():
            yield from (found for pattern in inside for found in sorted(path.glob(pattern)) if found.is_file())
        elif found_on_path := shutil.which(asked, path=environ.get("PATH")):
            yield Path(found_on_path)
        return
    if on_path := shutil.which(name, path=environ.get("PATH")):
        yield Path(on_path)
    for pattern in places:
        found = [path for path in Path("/").glob(pattern.lstrip("/")) if os.access(path, os.X_OK)]
        yield from sorted(found, key=_version_in, reverse=True)


def _version_in(path: Path) -> tuple[int, ...]:
    match = re.search(r"\d{4}(\.\d+)+", str(path))
    return numbers(match[0]) if match else ()


def run_tool(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run one to its end. Exit code 127 where it does not start; UserError where it takes too long."""
    try:
        return subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, errors="replace", timeout=timeout_s,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{Path(command[0]).name} {command[1]} took longer than {timeout_s:g} s") from None
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def last_words(done: subprocess.CompletedProcess[str], otherwise: str) -> str:
    """The last line that a tool printed."""
    words = (done.stderr or done.stdout).strip().splitlines()
    return words[-1] if words else otherwise
