"""Hugging Face folders: each tensor lands where it belongs, and every misfit or damaged file is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.loading import load_model
from engine.loading.safetensors import INDEX
from engine.weights import ModelWeights
from tests.engine.checkpoints import ARCHITECTURES, assert_same_weights, tiny_checkpoint, tiny_model

SINGLE = "model.safetensors"


@pytest.mark.parametrize("max_shard_size", ["1GB", "40KB"], ids=["one-file", "shards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_loads_bit_for_bit(tmp_path: Path, architecture: str, max_shard_size: str) -> None:
    tiny_checkpoint(tmp_path, architecture, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "40KB")
    loaded = load_model(tmp_path, torch.float32, "cpu", seed=0)
    assert_same_weights(loaded.weights, tiny_model(architecture))
    assert (loaded.weights_kind, loaded.source, loaded.tokenizer) == ("real", str(tmp_path), None)


def test_weights_are_cast_to_the_dtype_asked_for(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    weights = load_model(tmp_path, torch.bfloat16, "cpu", seed=0).weights
    expected = tiny_model("llama").model.layers[0].mlp.down_proj.weight.bfloat16()
    assert torch.equal(weights.layers[0].down.weight_NK, expected)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, "llama")


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of the single file; None drops one. Names are given with __ for the dots."""
    tensors = load_file(folder / SINGLE)
    for key, value in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / SINGLE)


def load(folder: Path) -> ModelWeights:
    return load_model(folder, torch.float32, "cpu", seed=0).weights


def test_missing_surplus_and_misshapen_tensors_are_named(llama: Path) -> None:
    rewrite(
        llama,
        model__layers__1__mlp__up_proj__weight=None,
        model__layers__3__mlp__up_proj__weight=torch.zeros(2, 5),
        model__norm__weight=torch.zeros(71),
    )
    with pytest.raises(ModelError) as caught:
        load(llama)
    message = str(caught.value)
    assert "missing model.layers.1.mlp.up_proj.weight [100, 72]" in message
    assert "unexpected model.layers.3.mlp.up_proj.weight [2, 5]" in message
    assert "misshapen model.norm.weight expected [72], found [71]" in message


def test_quantized_tensors_are_refused(llama: Path) -> None:
    rewrite(llama, model__norm__weight=torch.zeros(72, dtype=torch.int8))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is stored as I8"):
        load(llama)


@pytest.mark.parametrize("kept", [0, 5, 300, 30_000])
def test_a_truncated_file_is_named_with_the_mend(llama: Path, kept: int) -> None:
    data = (llama / SINGLE).read_bytes()
    (llama / SINGLE).write_bytes(data[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged .*download it again") as caught:
        load(llama)
    assert "\n" not in str(caught.value)


def test_a_tied_heads_copy_may_be_there_but_must_be_a_copy(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen3")
    embed = load_file(tmp_path / SINGLE)["model.embed_tokens.weight"]
    rewrite(tmp_path, lm_head__weight=embed.clone())
    assert load(tmp_path).lm_head.weight_NK.shape == (131, 72)
    rewrite(tmp_path, lm_head__weight=embed + 1)
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load(tmp_path)


def test_an_untied_head_that_is_missing_is_an_error(llama: Path) -> None:
    rewrite(llama, lm_head__weight=None)
    with pytest.raises(ModelError, match=r"missing lm_head\.weight \[131, 72\]"):
        load(llama)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama", max_shard_size="100KB")
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    second.unlink()
    with pytest.raises(ModelError, match=rf"{INDEX} lists {second.name}, which is not in the folder"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"weight_map": 3})])
def test_an_index_that_is_none_is_named(llama: Path, content: str) -> None:
    (llama / INDEX).write_text(content)
    with pytest.raises(ModelError, match=rf"{INDEX} is not a valid index of shards .* download it again"):
        load(llama)


def test_a_tensor_in_two_files_is_refused(llama: Path) -> None:
    (llama / SINGLE).rename(llama / "model-a.safetensors")
    save_file({"model.norm.weight": torch.zeros(72)}, llama / "model-b.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight is in both \S+model-a\.safetensors and model-b"):
        load(llama)
