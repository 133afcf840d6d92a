"""The machine and the code are described without starting anything."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.environment import (
    ROOT,
    Environment,
    Gpu,
    code,
    find_gpu,
    machine,
    resolve_device,
    resolve_dtype,
    run_quietly,
    source_hash,
)
from experiments.errors import UserError

GPU = Gpu("NVIDIA H200", "570.1", 141 << 30, 1)
WITH_GPU = Environment("3.12", "Linux", "cpu", 2, GPU, {"torch": "2.13.0"})
WITHOUT = replace(WITH_GPU, gpu=None)
CPU_BUILD = replace(WITH_GPU, packages={"torch": "2.13.0+cpu"})


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        ("auto", WITH_GPU, "cuda"),
        ("auto", WITHOUT, "cpu"),
        ("auto", CPU_BUILD, "cpu"),
        ("cpu", WITH_GPU, "cpu"),
        ("cuda", WITH_GPU, "cuda"),
        ("cuda", WITHOUT, "nvidia-smi shows no GPU"),
        ("cuda", CPU_BUILD, "torch is a CPU build"),
    ],
)
def test_the_device_is_what_there_is(device: str, environment: Environment, expected: str) -> None:
    if " " not in expected:
        assert resolve_device(device, environment) == expected
        return
    with pytest.raises(UserError, match=expected):
        resolve_device(device, environment)


def test_the_dtype_follows_the_device() -> None:
    asked = [("auto", "cuda"), ("auto", "cpu"), ("float16", "cpu")]
    assert [resolve_dtype(*pair) for pair in asked] == ["bfloat16", "float32", "float16"]


def fake_nvidia_smi(folder: Path, output: str, code: int = 0) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("output", "exit_code", "expected"),
    [
        ("NVIDIA H200, 570.1, 144384\nNVIDIA H200, 570.1, 144384", 0, Gpu("NVIDIA H200", "570.1", 141 << 30, 2)),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", 9, None),
        ("No devices were found", 0, None),
        ("NVIDIA GB10, 580.1, [N/A]", 0, None),
    ],
)
def test_the_gpu_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, exit_code: int, expected: Gpu | None
) -> None:
    fake_nvidia_smi(tmp_path, output, exit_code)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_gpu() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpu() is None


def test_this_machine_is_described_by_names_only() -> None:
    here = machine()
    assert here.cpu_count >= 1
    assert here.packages["torch"]
    assert not any(os.sep in text for text in (here.platform, here.python, *here.packages.values()))


def test_the_source_hash_changes_with_the_code_and_nothing_else(tmp_path: Path) -> None:
    for part in ("engine", "variants"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    original = source_hash(tmp_path)
    (tmp_path / "engine" / "notes.md").write_text("words")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "sweep.py").write_text("")
    assert source_hash(tmp_path) == original
    (tmp_path / "variants" / "kernels" / "new.py").write_text("")
    assert source_hash(tmp_path) != original


def test_this_code_has_a_hash() -> None:
    assert len(code().source_hash) == 64


def test_a_command_that_is_missing_or_fails_says_nothing() -> None:
    assert run_quietly("no-such-command") is None
    assert run_quietly("false") is None
    assert run_quietly("echo", "here") == "here\n"
