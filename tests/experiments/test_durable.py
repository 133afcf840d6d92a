"""A file is the old one or the new one, and any changed byte of it is noticed."""

import errno
import os
import resource
from pathlib import Path
from random import Random

import pytest

from experiments.durable import Damaged, NoSpace, insist_on_place, make_folder, read_json, write_figures, write_json
from experiments.errors import UserError

PAYLOAD = {"name": "décode", "samples": [1.25, 3e-9, -0.0], "nested": {"a": None, "b": [True, "x"]}}


@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_written_is_read(tmp_path: Path, indent: int | None) -> None:
    write_json(tmp_path / "a.json", PAYLOAD, indent)
    assert read_json(tmp_path / "a.json") == PAYLOAD
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, PAYLOAD)
    whole = file.read_bytes()
    for length in range(len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_json(file)


def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, PAYLOAD)
    whole, rng = file.read_bytes(), Random(0)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            assert read_json(file) == PAYLOAD
        except Damaged:
            continue


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"crc32": 1, "content": 2}', b"\xff", b"null"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Damaged):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("number", "kind", "complaint"),
    [
        (errno.ENOSPC, NoSpace, "no space left"),
        (errno.EDQUOT, NoSpace, "no space left"),
        (errno.EACCES, UserError, "deni"),
    ],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[UserError], complaint: str
) -> None:
    file = tmp_path / "a.json"
    write_json(file, PAYLOAD)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(kind, match=complaint):
            write_json(file, {"new": 1})
    assert read_json(file) == PAYLOAD
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    new, old = tmp_path / "deep" / "new.json", tmp_path / "old.json"
    old.write_text("old")
    for file in (new, old):
        insist_on_place(file, "out")
    assert not new.exists()
    assert old.read_text() == "old"
    for no_file in (tmp_path, Path(os.devnull)):
        with pytest.raises(UserError, match=f"out={no_file} cannot be written, for it is no file"):
            insist_on_place(no_file, "out")
    with pytest.raises(UserError, match=r"out=.*old\.json: File exists\); name another file"):
        insist_on_place(old / "new.json", "out")


def test_figures_that_do_not_fit_leave_the_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "figures.json"
    write_figures(file, {"old": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*figures\.json"):
            write_figures(file, {"new": [0.0] * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_text() == '{\n "old": 1\n}\n'
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    write_json(tmp_path / "a.json", PAYLOAD)
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json") == PAYLOAD


def test_folders_are_new_or_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write|not a folder"):
        make_folder(tmp_path / "file" / "a")
