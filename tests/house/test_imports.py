"""The import rules of pyproject.toml hold, and each fails when it is broken; every import is a declared dependency."""

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import CODE, ROOT, copy, pyproject


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", "pyproject.toml"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    """engine <- variants <- what runs engines, and nothing else in experiments/ touches torch."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


BREACHES = [
    ("experiments/plan.py", "import torch", "libraries"),
    ("experiments/reporting/rows.py", "from transformers import AutoConfig", "libraries"),
    ("experiments/new_command.py", "import engine.kernels.norm", "engine"),
    ("experiments/stats.py", "import variants.baseline", "variants"),
    ("experiments/peers/vllm.py", "import variants.baseline", "variants"),
    ("experiments/pool.py", "def lazily():\n    from experiments.peers.adapter import adapter_of", "runners"),
    ("experiments/sweep.py", "from vllm import LLM", "libraries"),
    ("engine/scheduler.py", "from variants import load_variant", "variants"),
    ("experiments/plan.py", "def lazily():\n    from experiments.measuring import session", "runners"),
    ("engine/engine.py", "from experiments.errors import UserError", "engine-alone"),
    ("variants/folded.py", "from experiments import metrics", "variants-below"),
]


@pytest.mark.parametrize(("file", "line", "contract"), BREACHES, ids=[f"{f}-{c}" for f, _, c in BREACHES])
def test_a_breach_is_found(tmp_path: Path, file: str, line: str, contract: str) -> None:
    """One forbidden import in a copy of the tree breaks the contract it should, and is named."""
    root = copy(tmp_path / "tree", *CODE, "pyproject.toml")
    with (root / file).open("a") as module:
        module.write(f"\n{line}\n")
    done = lint_imports(root)
    title = next(c["name"] for c in pyproject()["tool"]["importlinter"]["contracts"] if c["id"] == contract)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert f"{title} BROKEN" in said
    assert file.removesuffix(".py").replace("/", ".") in said.partition("Broken contracts")[2]


# Not installed everywhere: the import's name and its package.
ABSENT = {"pynvml": ["nvidia-ml-py"], "vllm": ["vllm"]}


def test_every_import_is_declared() -> None:
    """A package that the code imports is a dependency, an extra, or the standard library."""
    project = pyproject()["project"]
    listed = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    declared = {re.split(r"[\s\[<>=!;~]", name)[0].lower().replace("_", "-") for name in listed}
    known = {*sys.stdlib_module_names, *CODE, "configs"}
    packages = importlib.metadata.packages_distributions() | ABSENT
    undeclared = set()
    for file in (file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        for name in imported(file) - known:
            if not {owner.lower().replace("_", "-") for owner in packages.get(name, [])} & declared:
                undeclared.add(f"{file.relative_to(ROOT)}: {name}")
    assert not undeclared


def imported(file: Path) -> set[str]:
    """Top-level names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
