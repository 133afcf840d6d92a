"""What a run was made on and from: machine, software, code. No user names, no paths, no environment variables."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "transformers", "numpy", "nvidia-cuda-runtime", "nvidia-cublas", "vllm", "fusebench")
# Whatever changes these files may change a measured time.
CODE = (
    "engine",
    "variants",
    "experiments/worker.py",
    "experiments/lengths.py",
    "experiments/measuring",
    "experiments/peers",
    "experiments/peer_worker.py",
)


@dataclass(frozen=True)
class Gpu:
    """The first of the visible GPUs, and how many are visible."""

    name: str
    driver: str
    memory_bytes: int
    count: int


@dataclass(frozen=True)
class Environment:
    """The machine. `packages` has the versions of those of PACKAGES that are installed."""

    python: str
    platform: str
    cpu: str
    cpu_count: int
    gpu: Gpu | None
    packages: dict[str, str]


@dataclass(frozen=True)
class Code:
    """What was measured: git commit (`none` outside a checkout), uncommitted changes, hash of the engine's sources."""

    commit: str
    dirty: bool
    source_hash: str


def run_id_of(now: datetime, code: Code) -> str:
    """The name of a run that starts now: it sorts by time, and says which commit."""
    return f"{now:%Y%m%d-%H%M%S}-{code.commit[:7]}"


def by_time(run_id: str) -> tuple[str, int, str]:
    """Sorts run ids as the runs began, several of one second too; other names, as of copies, come before them."""
    found = re.fullmatch(r"(\d{8}-\d{6})-\w*(?:-(\d+))?", run_id)
    return (found[1], int(found[2] or 1), run_id) if found else ("", 0, run_id)


def machine() -> Environment:
    """The machine this runs on."""
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=find_gpu(),
        packages={name: found for name in PACKAGES if (found := package_version(name))},
    )


def find_gpu() -> Gpu | None:
    """The NVIDIA GPU that torch would see, or None; asks nvidia-smi, so that the harness needs no CUDA context."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    query = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
    # nvidia-smi knows no MIG slices by that name, and shows the whole GPUs then.
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    lines = (run_quietly("nvidia-smi", f"--id={chosen}", *query) if chosen else None) or run_quietly(
        "nvidia-smi", *query
    )
    fields = [[part.strip() for part in line.split(",")] for line in (lines or "").splitlines()]
    gpus = [row for row in fields if len(row) == 3 and row[2].isdigit()]
    if not gpus:
        return None
    name, driver, memory_mib = gpus[0]
    return Gpu(name, driver, int(memory_mib) << 20, len(gpus))


def resolve_device(device: str, environment: Environment) -> str:
    """`auto` becomes cuda where there is a GPU and a torch that can use it."""
    built_for_cpu = "+cpu" in environment.packages.get("torch", "")
    if device == "auto":
        return "cuda" if environment.gpu and not built_for_cpu else "cpu"
    if device == "cuda" and environment.gpu is None:
        raise UserError("device=cuda, but nvidia-smi shows no GPU here; use device=cpu, or see `fusebench doctor`")
    if device == "cuda" and built_for_cpu:
        raise UserError("device=cuda, but the installed torch is a CPU build; install a CUDA build, or use device=cpu")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` becomes bfloat16 on cuda, float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"


def code() -> Code:
    """The code this process runs from."""
    return Code(_commit(), _dirty(), source_hash(ROOT))


def source_hash(root: Path) -> str:
    """SHA-256 over names and contents of the measured code's Python and JSON files."""
    digest = hashlib.sha256()
    for part in CODE:
        path = root / part
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in (".py", ".json")]
        for file in sorted(files):
            digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def python_path(environ: Mapping[str, str] = os.environ) -> str:
    """The PYTHONPATH of a process that finds this code first."""
    return os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))


def package_version(name: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_quietly(*command: str) -> str | None:
    """Output of a command, or None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _commit() -> str:
    # A tree sent without its history names its commit; the source hash says whether it is that one.
    if named := os.environ.get("FUSEBENCH_COMMIT"):
        return named
    # An installed wheel may sit inside somebody else's checkout.
    if not (ROOT / ".git").exists():
        return "none"
    return (run_quietly("git", "-C", str(ROOT), "rev-parse", "HEAD") or "none").strip()


def _dirty() -> bool:
    if os.environ.get("FUSEBENCH_COMMIT") or not (ROOT / ".git").exists():
        return False
    changed = run_quietly(
        "git", "-C", str(ROOT), "status", "--porcelain", "--", "engine", "variants", "experiments", "configs"
    )
    return bool((changed or "").strip())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
