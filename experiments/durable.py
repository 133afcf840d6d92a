"""Files that are whole or absent, whenever the process or the machine dies, and that tell when a byte changed."""

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any

from experiments.errors import UserError

TRIES = 100


class NoSpace(UserError):
    """The disk, or the user's quota of it, is full."""


class Damaged(ValueError):
    """A file that is truncated, changed or not of this format."""


def write_json(path: Path, payload: Any, indent: int | None = None) -> None:
    """Write JSON data with its checksum, atomically and durably: a reader sees the old file or the new one.

    NoSpace where the disk is full and UserError where the folder cannot be written; the old file stays in both.
    """
    _replace(path, json_bytes(payload, indent))


def write_figures(path: Path, record: Any) -> None:
    """The same without a checksum, for people and documents; its folder is made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise mendable(error, path) from error
    _replace(path, json.dumps(record, indent=1).encode() + b"\n")


def json_bytes(payload: Any, indent: int | None = None) -> bytes:
    """What `write_json` writes."""
    record = {"crc32": _checksum(payload), "content": payload}
    separators = (",", ":") if indent is None else None
    return json.dumps(record, indent=indent, separators=separators, allow_nan=False).encode() + b"\n"


def read_json(path: Path) -> Any:
    """The JSON data of such a file. Damaged says what is wrong with it."""
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        raise Damaged("truncated, or not JSON") from None
    if not isinstance(record, dict) or record.keys() != {"crc32", "content"}:
        raise Damaged("not a file of this format")
    if record["crc32"] != _checksum(record["content"]):
        raise Damaged("its checksum does not match")
    return record["content"]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a new folder, parents included. FileExistsError where it exists, UserError where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
        sync_folder(path.parent)
    except FileExistsError:
        if path.is_dir():
            raise
        raise UserError(f"{path.parent} is not a folder") from None
    except OSError as error:
        raise mendable(error, path) from error


def make_new_folder(path: Path) -> Path:
    """Such a folder, its name with a number where it is taken, as by two runs of one second."""
    for number in range(1, TRIES):
        new = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            make_folder(new)
        except FileExistsError:
            continue
        return new
    raise UserError(f"{path.parent} has {TRIES} folders of the name {path.name} already")


def insist_on_place(path: Path, key: str) -> None:
    """UserError before anything is measured where a file that `key` names could not be written after it."""
    there = path.exists()
    if there and not path.is_file():
        raise UserError(f"{key}={path} cannot be written, for it is no file; name one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise UserError(f"{key}={path} cannot be written ({why}); name another file") from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_through(temporary, data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise mendable(error, path) from error


def _write_through(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(payload: Any) -> str:
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(canonical.encode()):08x}"


def mendable(error: OSError, path: Path) -> UserError:
    """What the user can do about a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left for {path}")
    return UserError(f"cannot write {path}: {error.strerror or error}")
