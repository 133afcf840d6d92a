"""What `model` may be: each form is found, and each that is not is refused with what was tried."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from engine.errors import ModelError
from engine.loading import load_model
from tests.engine.checkpoints import tiny_checkpoint


def load(model: str | Path, seed: int = 0) -> Any:
    return load_model(model, torch.float32, "cpu", seed)


def test_a_name_gives_seeded_random_weights() -> None:
    loaded = load("tiny-llama", seed=3)
    assert (loaded.weights_kind, loaded.tokenizer) == ("random", None)
    assert loaded.source == "configs/model/tiny-llama.yaml, random weights, seed 3"
    assert loaded.config.hidden_size == 72
    assert torch.equal(loaded.weights.embed_VH, load("tiny-llama", seed=3).weights.embed_VH)
    assert not torch.equal(loaded.weights.embed_VH, load("tiny-llama").weights.embed_VH)


def test_a_config_json_gives_seeded_random_weights_of_its_shape(tmp_path: Path) -> None:
    config_path = tiny_checkpoint(tmp_path, "qwen3") / "config.json"
    loaded = load(config_path, seed=5)
    assert loaded.weights_kind == "random"
    assert loaded.source == f"{config_path}, random weights, seed 5"
    assert loaded.config == load(tmp_path).config


def test_a_folder_without_weights_says_how_to_ask_for_random_ones(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors; .*config\.json itself for seeded random weights"):
        load(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a config\.json nor a GGUF file"):
        load(tmp_path)


def test_a_folder_of_several_ggufs_wants_one_named(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"several GGUF files \(a\.gguf, b\.gguf\); name the one"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["qwen9", "/no/such/folder", "./no/such", "../x", "a/b/c", "tiny.gguf"])
def test_what_is_nothing_known_is_refused_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=r"no file, no folder, no hub id and not one of .*qwen3-0\.6b"):
        load(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.touch()
    with pytest.raises(ModelError, match=r"neither a folder, a \.gguf file nor a config\.json"):
        load(path)


def test_a_hub_id_loads_the_folder_that_the_hub_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(tmp_path, "qwen2")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **_: asked.append(hub_id) or str(tmp_path))
    assert load("some/model").config.architecture == "qwen2"
    assert asked == ["some/model"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError) as caught:
        load("some/model")
    assert "model='some/model'" in str(caught.value)
    assert str(caught.value).endswith("the hub did not give it: no route to the hub")
