"""CONTRIBUTING.md's recipes, followed word for word in a copy of the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import CODE, ROOT, copy

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
RECIPE = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)

COMMAND = re.compile(r"^```bash\nfusebench (.*?)\n```", re.MULTILINE)

PROOF = """
import torch
from dataclasses import replace
from engine import BASELINE, Engine, EngineConfig, SamplingParams
from experiments.reporting.figures import build_figures
from experiments.reporting.rows import analyse
from experiments.reporting.tables import build_tables
from tests.experiments.reporting.synthetic import Synthetic
from variants import build_variant, load_variant

torch.set_num_threads(1)
variant = load_variant("plain_silu")
assert variant.replaced == load_variant("silu_rows").replaced == ("silu_mul",), variant.replaced
assert build_variant("off", "silu_rows", {"silu_rows": False}, BASELINE.runtime).replaced == ()
assert not load_variant("eager").runtime.cuda_graphs
config = EngineConfig("tiny", "float32", "cpu", max_model_len=64, max_num_seqs=2, num_kv_blocks=16)
answers = [
    [output.token_ids for output in Engine(config, v).generate([[3, 5, 7], [11]], SamplingParams(max_tokens=8))]
    for v in (BASELINE, variant, load_variant("silu_rows"))
]
assert answers[0] == answers[1] == answers[2], answers

made = Synthetic(batches=(1,), lengths=(128,), mend=lambda result: replace(result, memory_bytes={"reserved": 2**30}))
analysis = analyse(made.run())
assert any("slowest_step_ms" in row for row in build_tables(analysis)["metrics"].rows)
_, figure = build_figures(analysis)["peak_memory"]
assert ("baseline", 1024.0) in figure.records
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every recipe carried out."""
    root = copy(tmp_path_factory.mktemp("recipes") / "tree", *CODE, "configs", "tests", "pyproject.toml")
    for path, code in RECIPE.findall(CONTRIBUTING):
        file = root / path
        file.write_text(f"{file.read_text()}\n\n{code}" if file.exists() else code)
    figures = root / "experiments" / "reporting" / "figures" / "__init__.py"
    figures.write_text(
        f"{figures.read_text()}from experiments.reporting.figures import memory as memory  # noqa: E402\n"
    )
    return root


def run(root: Path, *command: str | Path) -> str:
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_was_added_works(followed: Path) -> None:
    """The variant answers as the baseline does; metric and figure are in the report."""
    run(followed, sys.executable, "-c", PROOF)


def test_the_kernel_that_was_added_compiles(followed: Path) -> None:
    """Its own ahead-of-time test passes."""
    run(followed, sys.executable, "-m", "pytest", "-q", "tests/variants/kernels/test_silu_rows.py")


@pytest.mark.parametrize("command", COMMAND.findall(CONTRIBUTING))
def test_what_was_added_is_planned(followed: Path, command: str) -> None:
    """The commands that the recipes show find it by name."""
    plan = run(followed, sys.executable, "-m", "experiments", *command.split(), "dry_run=true", "device=cpu")
    assert "plain_silu" in plan or "qwen3-0.6b.long_decode.b4.l8192" in plan


def test_what_was_added_is_in_the_house_style(followed: Path) -> None:
    """Lint, format and import rules hold for the recipes' code."""
    written = [followed / path for path, _ in RECIPE.findall(CONTRIBUTING) if path.endswith(".py")]
    tools = Path(sys.executable).parent
    run(followed, tools / "ruff", "check", *written)
    run(followed, tools / "ruff", "format", "--check", *written)
    run(followed, tools / "lint-imports", "--no-cache")
