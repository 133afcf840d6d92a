"""Every engine loads one folder: written once, named by its content, a real checkpoint as it is."""

from pathlib import Path

import pytest
import torch

from engine.loading import load_model
from experiments.measuring.session import hash_weights
from experiments.peers.checkpoint import checkpoint_folder, content_hash
from tests.engine.checkpoints import tiny_checkpoint
from tests.experiments.measuring.sessions import session_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def test_a_drawn_model_is_written_once(cache: Path) -> None:
    """By whoever comes first; later ones find it, and of one that was killed while writing nothing is left."""
    session = session_of("tiny")
    half = cache / f".partial-tiny-{content_hash(session)}"
    half.mkdir(parents=True)
    (half / "model.safetensors").touch()
    folder = checkpoint_folder(session)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder(session_of("tiny")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == [folder]
    loaded = load_model(folder, torch.float32, "cpu", seed=0)
    assert hash_weights(loaded.weights) == session.weights_hash


def test_another_seed_or_dtype_is_another_folder() -> None:
    folders = [checkpoint_folder(session_of("tiny", **changes)) for changes in ({}, {"seed": 1}, {"dtype": "bfloat16"})]
    assert len(set(folders)) == 3
    assert all(folder.name.startswith("tiny-") for folder in folders)


def test_a_checkpoint_is_taken_as_it_is(tmp_path: Path, cache: Path) -> None:
    path = tiny_checkpoint(tmp_path / "real", "qwen3")
    assert checkpoint_folder(session_of(str(path), weights="real")) == path
    assert not cache.exists()
