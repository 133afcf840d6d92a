"""The package works installed as a wheel, configs and templates included, and make refuses a Python it cannot use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import CODE, ROOT, copy


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents, its commands under bin/."""
    work = tmp_path_factory.mktemp("wheel")
    tree = copy(work / "tree", *CODE, "configs", "pyproject.toml", "README.md", "LICENSE")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work, tree]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = work.glob("*.whl")
    target = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", work / "site", wheel]
    subprocess.run(target, check=True, capture_output=True)
    return work / "site"


def run(site: Path, cwd: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command away from the repository, with only the wheel and the environment's packages importable."""
    env = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    """No test below is about the working tree by mistake."""
    done = run(installed, tmp_path, "-c", "import experiments.plan as plan; print(plan.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_a_sweep_is_planned(installed: Path, tmp_path: Path) -> None:
    """Configs compose from the wheel, by the module and by the script, and nothing is written."""
    asked = ("sweep", "experiment=demo", "device=cpu", "dry_run=true")
    plans = [
        run(installed, tmp_path, *start, *asked) for start in (("-m", "experiments"), (installed / "bin/fusebench",))
    ]
    assert plans[0].returncode == 0, plans[0].stderr
    assert plans[0].stdout == plans[1].stdout
    assert {"baseline", "folded", "fused"} == {line.split(".")[-2] for line in plans[0].stdout.splitlines()[1:]}
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_and_is_reported(installed: Path, tmp_path: Path) -> None:
    """Workers, store and report, in whatever folder one stands."""
    small = ("experiment=quick", "variants=[baseline,folded]", "workloads=decode", "protocol=smoke", "device=cpu")
    swept = run(installed, tmp_path, "-m", "experiments.sweep", *small)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    reported = run(installed, tmp_path, "-m", "experiments.report", "experiment=quick")
    assert reported.returncode == 0, reported.stderr
    assert "2 of 2 cells ok" in reported.stdout
    page = (tmp_path / "reports" / "quick" / "index.html").read_text()
    assert "twin" in page
    assert str(installed) not in page


def test_every_config_is_in_the_wheel(installed: Path) -> None:
    """And so is every file that the code reads as data."""
    for folder in ("configs", *CODE):
        data = [f for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")]
        missing = [f.name for f in data if not (installed / f.relative_to(ROOT)).is_file()]
        assert not missing


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    """One line that says what is needed and how to give it, and nothing installed."""
    tree = copy(tmp_path / "tree", "Makefile", "pyproject.toml", "constraints-cpu.txt")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    make = ["make", "test", f"PYTHON={old}"]
    done = subprocess.run(make, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "fusebench needs Python 3.11 or later" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tree / ".venv").exists()


def test_make_targets_do_what_their_help_says(tmp_path: Path) -> None:
    """Every target that `make help` lists exists, and every phony target but `help` is listed."""
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")}
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert listed == set(phony.removeprefix(".PHONY:").split()) - {"help"}


def test_ci_is_a_sound_script() -> None:
    """Bash can read it."""
    assert shutil.which("bash")
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
