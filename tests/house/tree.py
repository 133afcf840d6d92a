"""The repository as its own tests see it."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE = ("engine", "variants", "experiments")
UNSEEN = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def files(suffix: str = "") -> list[Path]:
    """Every file that is or would be committed, sorted."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(ROOT / name for name in set(names) if name.endswith(suffix) and (ROOT / name).is_file())


def copy(target: Path, *names: str) -> Path:
    """Copy files and folders of the repository into a new folder."""
    target.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=UNSEEN)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def pyproject() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
