"""The doctor names what is missing and how to mend it, and never fails itself."""

import os
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from experiments import doctor
from experiments.doctor import Finding, Level, diagnose, main
from experiments.trace import nsys
from experiments.trace.tools import numbers
from tests.experiments.test_environment import fake_nvidia_smi


def having(findings: list[Finding], word: str) -> Finding:
    return next(finding for finding in findings if word in finding.what)


def executable(path: Path, output: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), "/bin"]))


def test_this_machine_can_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert not any(line.startswith("broken") for line in printed.splitlines())


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["gpu"]) == 2
    assert "doctor takes no arguments, not 'gpu'" in capsys.readouterr().err


def test_every_lack_has_a_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # Where CI installs one.
    monkeypatch.setattr(nsys, "INSTALL_PLACES", ())
    monkeypatch.delenv(nsys.COMMAND, raising=False)
    monkeypatch.setattr(doctor, "package_version", lambda _: None)
    monkeypatch.setattr(doctor, "cached_model", lambda _: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(10**6))
    findings = diagnose()
    lacking = [finding for finding in findings if finding.level in (Level.LACKS, Level.BROKEN)]
    assert all(finding.mend for finding in lacking)
    said = " ".join(finding.what for finding in lacking)
    assert all(word in said for word in ("torch", "transformers", "nvtx", "nsys", "smollm2-135m", "free for the"))
    assert having(findings, "torch is not installed").level is Level.BROKEN


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [("torch", "2.10.1+cu130", Level.BROKEN), ("torch", "2.11.0", Level.OK), ("nvtx", "0.2.13", Level.LACKS)],
)
def test_versions_are_held_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, level: Level
) -> None:
    real = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda asked: version if asked == name else real(asked))
    assert having(diagnose(), f"{name} {version}").level is level


def test_an_nsys_without_its_importer_is_told_from_a_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = executable(tmp_path / "nsight" / "target-linux-x64" / "nsys", "NVIDIA Nsight Systems version 2023.4.4.54-1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nsys").symlink_to(path)
    on_path(monkeypatch, tmp_path / "bin")
    monkeypatch.setattr(nsys, "DEBIAN_HOST", tmp_path / "host-elsewhere")
    found = having(diagnose(), "nsys 2023.4.4.54 cannot find its importer")
    assert found.level is Level.LACKS
    assert "install the whole" in found.mend

    executable(tmp_path / "host-elsewhere" / "QdstrmImporter", "")
    assert having(diagnose(), "importer").mend == f"ln -s {tmp_path / 'host-elsewhere'} {tmp_path / 'nsight'}/"

    (tmp_path / "nsight" / "host-linux-x64").symlink_to(tmp_path / "host-elsewhere")
    assert having(diagnose(), "importer").level is Level.OK


def test_profilers_are_found_where_trace_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an unpacked archive that a variable names; what is wrong with it is said."""
    on_path(monkeypatch)
    nsys = executable(tmp_path / "nsight" / "target-linux-x64" / "nsys", "NVIDIA Nsight Systems version 2024.6.1.90-2")
    executable(tmp_path / "nsight" / "host-linux-x64" / "QdstrmImporter", "")
    monkeypatch.setenv("FUSEBENCH_NSYS", str(tmp_path / "nsight"))
    ncu = executable(tmp_path / "compute" / "ncu", "Version 2025.3.1.0 (build 1)")
    monkeypatch.setenv("FUSEBENCH_NCU", str(ncu))
    findings = diagnose()
    assert having(findings, "nsys").what == "nsys 2024.6.1.90, with its importer"
    assert having(findings, "ncu").what == "ncu 2025.3.1.0"

    for path in (nsys, ncu):
        executable(path, "what?")
    findings = diagnose()
    assert having(findings, "does not run as nsys: what?").mend.startswith("install Nsight Systems")
    assert having(findings, "does not run as ncu: what?").mend.startswith("install Nsight Compute")


def test_a_gpu_is_described_with_its_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvidia_smi(tmp_path, "NVIDIA H200, 570.1, 144384")
    on_path(monkeypatch, tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert having(diagnose(), "NVIDIA H200, 141 GiB, driver 570.1").level is Level.OK
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert having(diagnose(), "CUDA_VISIBLE_DEVICES").mend == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("state", "level", "text"),
    [
        ("1980, 1980, 0x0000000000000000, 40", Level.OK, "SM clock 1980 of 1980 MHz, 40 C"),
        ("345, 1980, 0x0000000000000001, 30", Level.OK, "SM clock 345"),
        ("1200, 1980, 0x0000000000000048, 88", Level.NOTE, "throttled (HwSlowdown, HwThermalSlowdown)"),
        ("1900, 1980, 0x0000000000000004, 60", Level.OK, "SM clock 1900"),
    ],
)
def test_throttling_is_told_from_idling(monkeypatch: pytest.MonkeyPatch, state: str, level: Level, text: str) -> None:
    monkeypatch.setattr(doctor, "run_quietly", lambda *command: state if "clocks.sm" in command[1] else "12\n13\n")
    processes, clocks = list(doctor._gpu_state())
    assert processes.what == "processes that use the GPU: 2"
    assert clocks.level is level
    assert text in clocks.what


def test_versions_compare_by_number() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("0.2.11") < numbers("0.2.13rc1")
