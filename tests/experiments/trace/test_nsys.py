"""Finding nsys, and reading what it leaves behind."""

import os
import re
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.trace import nsys as module
from experiments.trace.nsys import (
    Nsys,
    export_sqlite,
    find_nsys,
    finish_report,
    numbers,
    why_no_ranges,
)

VERSION = "NVIDIA Nsight Systems version 2023.4.4.54-234433681190v0"


def script(path: Path, *lines: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_installed_nsys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTALL_PLACES", ())
    monkeypatch.setattr(module, "DEBIAN_HOST", Path("/nonexistent"))


def path_with(*folders: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, (*folders, "/nonexistent")))}


def test_versions_compare_as_numbers() -> None:
    assert numbers("2023.4.4.54-234433681190v0") == (2023, 4, 4, 54)
    assert numbers("2026.1.1") > numbers("2025.10.2") > numbers("2025.6")
    assert numbers("none") == ()


def test_the_one_asked_for_comes_before_the_one_on_path(tmp_path: Path) -> None:
    on_path = script(tmp_path / "bin" / "nsys", f"echo {VERSION}")
    asked = script(tmp_path / "other" / "nsys", "echo NVIDIA Nsight Systems version 2026.1.1.0")
    environ = path_with(on_path.parent)
    assert find_nsys(None, environ).path == on_path
    assert find_nsys(str(asked), environ).version == "2026.1.1.0"
    assert find_nsys(None, {**environ, "FUSEBENCH_NSYS": str(asked)}).path == asked
    assert find_nsys("nsys", environ).numbers == (2023, 4, 4, 54)


def test_an_unpacked_archive_brings_its_libraries(tmp_path: Path) -> None:
    command = script(
        tmp_path / "kit/nsight-systems/target-linux-x64/nsys",
        'test -n "$LD_LIBRARY_PATH" || { echo cannot load libssh.so.4 >&2; exit 127; }',
        f"echo {VERSION}",
    )
    (tmp_path / "kit/lib").mkdir()
    (tmp_path / "kit/lib/libssh.so.4").touch()
    found = find_nsys(str(tmp_path / "kit"), path_with())
    assert (found.path, found.library_path) == (command, str(tmp_path / "kit/lib"))
    # For that command only, before what was there.
    assert found.environment({"LD_LIBRARY_PATH": "/mine"})["LD_LIBRARY_PATH"] == f"{tmp_path / 'kit/lib'}:/mine"
    named = find_nsys(None, {**path_with(), "FUSEBENCH_NSYS": str(command), "FUSEBENCH_NSYS_LIB": "/elsewhere"})
    assert named.library_path == "/elsewhere"


def test_the_newest_of_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for year in ("2023.4.4", "2025.10.1", "2025.6.1"):
        script(tmp_path / year / "bin" / "nsys", f"echo NVIDIA Nsight Systems version {year}.1")
    monkeypatch.setattr(module, "INSTALL_PLACES", (f"{tmp_path}/*/bin/nsys",))
    assert find_nsys(None, path_with()).version == "2025.10.1.1"


def test_no_nsys_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not on this machine; install Nsight Systems .*profiler=torch"):
        find_nsys(None, path_with(tmp_path))
    with pytest.raises(UserError, match="there is no nsys"):
        find_nsys(str(tmp_path), path_with())


def test_an_nsys_that_is_too_old_or_broken_is_named(tmp_path: Path) -> None:
    old = script(tmp_path / "old", "echo NVIDIA Nsight Systems version 2021.3.1")
    with pytest.raises(UserError, match=r"nsys 2021\.3\.1 is too old"):
        find_nsys(str(old), path_with())
    broken = script(tmp_path / "broken", "echo cannot open libfoo.so >&2; exit 127")
    with pytest.raises(UserError, match=r"does not run as nsys: cannot open libfoo\.so"):
        find_nsys(str(broken), path_with())


def test_a_raw_stream_is_imported_by_hand(tmp_path: Path) -> None:
    nsys = Nsys(tmp_path / "nsight-systems/target-linux-x64/nsys", "2022.4.2.1")
    report = tmp_path / "capture.nsys-rep"
    report.with_suffix(".qdstrm").touch()
    with pytest.raises(UserError, match=r"its importer is missing: install the whole of Nsight Systems"):
        finish_report(nsys, report)
    script(tmp_path / "nsight-systems/host-linux-x64/QdstrmImporter", 'test "$1 $3" = "-i -o" && cp "$2" "$4"')
    assert finish_report(nsys, report) == report
    assert report.is_file()


def test_debians_split_package_is_mended_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = tmp_path / "debian/host-linux-x64"
    importer = script(debian / "QdstrmImporter", "echo cannot load libQt6Core >&2; exit 1")
    monkeypatch.setattr(module, "DEBIAN_HOST", debian)
    nsys = Nsys(tmp_path / "lib/nsight-systems/target-linux-x64/nsys", "2022.4.2.1")
    assert module.find_importer(nsys) == importer
    (tmp_path / "capture.qdstrm").touch()
    line = f"ln -s {debian} {tmp_path}/lib/nsight-systems/"
    with pytest.raises(UserError, match=f"cannot load libQt6Core; {line}"):
        finish_report(nsys, tmp_path / "capture.nsys-rep")


def test_a_window_that_never_opened_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="captured nothing: the profiler window never opened"):
        finish_report(Nsys(tmp_path / "nsys", "2023.4"), tmp_path / "capture.nsys-rep")


def test_a_failed_export_keeps_the_last_words(tmp_path: Path) -> None:
    command = script(tmp_path / "nsys", "echo Importer error: bad magic >&2; exit 1")
    with pytest.raises(UserError, match=r"export failed on a\.nsys-rep: Importer error: bad magic"):
        export_sqlite(Nsys(command, "2023.4"), tmp_path / "a.nsys-rep", tmp_path / "a.sqlite")


@pytest.mark.parametrize(
    ("nvtx", "nsys", "explanation"),
    [
        ("0.2.17", "2023.4.4.54", r"drops every range of nvtx 0\.2\.17: python -m pip install nvtx==0\.2\.11"),
        ("0.2.12", "2022.4.2.1", "drops every range"),
        ("0.2.17", "2025.6.1", "did the worker push any"),
        ("0.2.11", "2023.4.4.54", "did the worker push any"),
    ],
)
def test_a_trace_without_ranges_is_explained(
    monkeypatch: pytest.MonkeyPatch, nvtx: str, nsys: str, explanation: str
) -> None:
    monkeypatch.setattr(module, "version", lambda _: nvtx)
    assert re.search(explanation, why_no_ranges(nsys))
