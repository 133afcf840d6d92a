"""The scripts under .ci: they are sound, and every command that a GPU machine would be asked for is understood."""

import os
import re
import shutil
import subprocess
import tarfile
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from experiments.cli import module_of
from experiments.compose import compose
from experiments.kernels import command as kernels_command
from experiments.memory import fit_together
from experiments.models import find_model
from experiments.reporting.ablation import ladders
from tests.house.tree import ROOT

GPU = ROOT / ".ci/gpu"
STEPS = re.search(r"STEP\.\.\. +there: ((?:.+\n# {20,})*.+)", GPU.read_text())
H200_BYTES = 143_771 * 2**20
AA_RUNS = 3
STATES_RUNS = 4
# Stands for Python: keeps what it is asked to run, one line a call.
STUB = '#!/bin/sh\necho "$@" >>"$ASKED"\n'


@pytest.mark.parametrize("script", ["run", "gpu"])
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / ".ci" / script], check=True)


def asked_by(tmp_path: Path, *steps: str, stub: str = STUB, status: int = 0, **variables: str) -> list[list[str]]:
    """The Python commands of `.ci/gpu STEP...`, in a copy of the tree's scripts."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(GPU, tmp_path / ".ci/gpu")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(stub)
    (tmp_path / "bin/python3").chmod(0o755)
    (tmp_path / "site").mkdir()
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked")}
    env |= {"SITE": str(tmp_path / "site"), "OUT": str(tmp_path / "out"), **variables}
    done = subprocess.run(["bash", tmp_path / ".ci/gpu", *steps], env=env, cwd=tmp_path, capture_output=True)
    assert done.returncode == status
    return [line.split() for line in (tmp_path / "asked").read_text().splitlines()]


def test_every_step_asks_for_what_there_is(tmp_path: Path) -> None:
    assert STEPS
    steps = STEPS[1].replace("#", "").split()
    asked = asked_by(tmp_path, *steps)
    assert len(asked) == len(steps) + AA_RUNS - 1 + STATES_RUNS - 1
    for arguments in asked:
        module = arguments[arguments.index("-m") + 1]
        if module == "pytest":
            folders = [word for word in arguments if word.startswith("tests/")]
            assert folders
            assert all((ROOT / folder).exists() for folder in folders)
        else:
            import_module(module_of(module.removeprefix("experiments."))).parse(arguments[2:])
    assert all((tmp_path / f"out/{step}.log").is_file() for step in steps)


@pytest.mark.parametrize(("commit", "goes_on"), [("abcdef01", True), ("00000000", False)])
def test_a_sweep_goes_on_with_the_run_of_its_commit(tmp_path: Path, commit: str, goes_on: bool) -> None:
    """Runs that are committed came from earlier ones, and would refuse."""
    (tmp_path / "results/headline/20261125-000000-abcdef0").mkdir(parents=True)
    (tmp_path / "results/headline/20261125-000000-abcdef0/manifest.json").write_text(' "commit": "abcdef01",\n')
    (tmp_path / ".gpu").mkdir()
    (tmp_path / ".gpu/commit").write_text(commit)
    [asked] = asked_by(tmp_path, "headline")
    assert ("resume=latest" in asked) == goes_on
    assert "name=headline" in asked


def test_the_rungs_of_a_large_model_are_all_there_and_fit_on_one_gpu_run_by_run(tmp_path: Path) -> None:
    steps = [f"rungs_{number}" for number in range(1, 5)]
    asked = asked_by(tmp_path, *steps)
    found = []
    for arguments in asked:
        config = compose([*arguments[2:], "dtype=bfloat16"])
        assert fit_together(find_model("qwen3-8b"), config, H200_BYTES)
        for ladder in ladders(config.variants):
            found += [(rung.name, rung.how, rung.without) for rung in ladder.rungs]
    [whole] = ladders(compose(["experiment=ablation"]).variants)
    assert sorted(found) == sorted((rung.name, rung.how, rung.without) for rung in whole.rungs)


def test_the_heat_maps_are_of_six_models_each_in_one_step(tmp_path: Path) -> None:
    asked = asked_by(tmp_path, "kernels_1", "kernels_2", "kernels_3")
    models = [model for words in asked for model in kernels_command.parse(words[2:]).models]
    assert sorted(models) == sorted(set(models))
    assert len(models) == 6


def test_what_still_runs_at_the_limit_is_interrupted_and_packed(tmp_path: Path) -> None:
    stub = STUB + "mkdir -p results && touch results/kept && exec sleep 60\n"
    (tmp_path / "variants/kernels").mkdir(parents=True)
    (tmp_path / "variants/kernels/tiles.json").touch()
    [asked] = asked_by(tmp_path, "tune", stub=stub, status=124, LIMIT_S="2", ARGS="rows=[1,2] repeats=3")
    assert asked[-2:] == ["rows=[1,2]", "repeats=3"]
    with tarfile.open(tmp_path / "out/tune.tar.xz") as packed:
        assert {"results/kept", "variants/kernels/tiles.json"} <= set(packed.getnames())


def test_a_sweep_is_told_to_end_before_the_limit(tmp_path: Path) -> None:
    [asked] = asked_by(tmp_path, "headline", LIMIT_S="200", BUDGET_S="480")
    [budget] = [word for word in asked if word.startswith("protocol.time_budget_s=")]
    assert 110 <= int(budget.split("=")[1]) <= 120


def test_lanes_run_side_by_side_on_a_gpu_each(tmp_path: Path) -> None:
    stub = '#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" "$@" >>"$ASKED"\nmkdir -p results\n'
    (tmp_path / "variants/kernels").mkdir(parents=True)
    (tmp_path / "variants/kernels/tiles.json").touch()
    asked = asked_by(tmp_path, "offline", "kernels", "//", "ablation", "//", "aa", stub=stub)
    lanes = {(gpu, "name=" + name) for gpu, name in (("0", "offline"), ("1", "ablation"), ("2", "aa_3"))}
    assert lanes <= {(words[0], word) for words in asked for word in words}
    assert [words[0] for words in asked if "experiments.kernels" in words] == ["0"]
    with tarfile.open(tmp_path / "out/lanes.tar.xz") as packed:
        assert "variants/kernels/tiles.json" in packed.getnames()


def test_the_worst_of_the_lanes_is_the_status(tmp_path: Path) -> None:
    stub = STUB + "case $2 in experiments.trace) exit 3 ;; esac\n"
    assert len(asked_by(tmp_path, "trace", "//", "kernels", stub=stub, status=3)) == 2


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / "asked").touch()
    assert asked_by(tmp_path, "headlines", status=2) == []


def test_what_several_gpus_take_is_packed(tmp_path: Path) -> None:
    """The extra of `devices=[0,1]`, pinned as in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # Ended before Git is asked: this folder is no repository. The stub sees `-m pip download` and `-m pip wheel`.
    stub = STUB + "case $3 in wheel) exit 1 ;; esac\n"
    download, _ = asked_by(tmp_path, "pack", stub=stub, status=1)
    assert set(extras["cluster"]) <= set(download)


def test_a_broken_archive_of_vllm_is_not_taken_for_it_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / ".gpu/v").mkdir(parents=True)
    (tmp_path / ".gpu/v/vllm.tar.xz").write_bytes(b"half")
    (tmp_path / "asked").touch()
    assert asked_by(tmp_path, "peers_small", status=1) == []
    assert not (tmp_path / "site-peers").exists()
