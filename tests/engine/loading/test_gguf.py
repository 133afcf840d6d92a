"""GGUF files: config, weights and tokenizer of tiny ones written here, and of the real one against transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import RopeConfig
from engine.errors import ModelError
from engine.loading import LoadedModel, load_model, load_model_yaml
from engine.loading.gguf import gguf_config
from engine.loading.gguf_file import open_gguf
from engine.rope import inverse_frequencies
from experiments.fetch import cached_model
from tests.engine.checkpoints import assert_same_weights
from tests.engine.loading.gguf_files import BOS_ID, EOS_ID, TOKENS, gguf_model, write_gguf

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def load(path: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(path, dtype, "cpu", seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_loads_bit_for_bit(tmp_path: Path, architecture: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture)
    loaded = load(tmp_path)
    model = gguf_model(architecture)
    assert_same_weights(loaded.weights, model)
    config = loaded.config
    assert (config.architecture, config.vocab_size, config.num_layers) == (architecture, len(TOKENS), 3)
    assert config.head_dim == (20 if architecture == "qwen3" else 12)
    assert config.norm_eps == 1e-5
    assert config.max_position_embeddings == 256
    assert config.rope == RopeConfig()
    assert config.tie_word_embeddings == (architecture != "llama")
    assert (config.bos_token_id, config.eos_token_ids) == (BOS_ID, (EOS_ID,))
    assert (loaded.source, loaded.weights_kind) == (str(path), "real")


def test_quantized_tensors_are_dequantized(tmp_path: Path) -> None:
    model = gguf_model("qwen3")
    weight = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    # Blocks hold 32 values and rows of 100 do not divide; half precision has no blocks.
    path = write_gguf(tmp_path / "m.gguf", "qwen3", tensors={"blk.0.ffn_down.weight": weight.astype(np.float16)})
    assert torch.equal(load(path).weights.layers[0].down.weight_NK, torch.from_numpy(weight).half().float())


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "BF16"])
def test_the_dequantizer_we_rely_on_is_within_its_step(kind: str) -> None:
    """Half a quantization step of the block's range (15 and 254 steps), or bfloat16's 8 bits."""
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    quantization = GGMLQuantizationType[kind]
    error = np.abs(dequantize(quantize(values, quantization), quantization) - values).max()
    span = values.max() - values.min()
    bound = {"Q4_1": span / 15 / 2, "Q8_0": span / 127 / 2, "BF16": np.abs(values).max() / 2**8}[kind]
    assert error <= bound * 1.05


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_named_with_the_mend(tmp_path: Path, share: float) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelError, match=r"m\.gguf is truncated, damaged or no GGUF file .*; fetch it again") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 6000), value=st.integers(0, 255))
def test_a_damaged_header_is_a_model_error_or_still_a_file(tmp_path: Path, position: int, value: int) -> None:
    path = tmp_path / "m.gguf"
    if not path.exists():
        write_gguf(path, "qwen3")
    data = bytearray(path.read_bytes())
    data[position] = value
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    try:
        file = open_gguf(damaged)
    except ModelError:
        return
    assert all(tensor.data.size for tensor in file.tensors.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gpt2"}, "general.architecture='gpt2' is not supported; supported are llama, qwen2, qwen3"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count"),
        ({"metadata": {"split.count": 2}}, "split.count"),
        ({"metadata": {"llama.rope.dimension_count": 6}}, "llama.rope.dimension_count=6 differs from the head dim 12"),
        ({"metadata": {"llama.attention.head_count_kv": 4}}, "head_count=6 is no multiple of 4"),
        ({"metadata": {"llama.block_count": None}}, "llama.block_count is missing"),
        ({"metadata": {"llama.attention.head_count": [6, 6, 6]}}, "llama.attention.head_count=[6, 6, 6]"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "llama.rope.scaling.type='longrope'"),
        ({"metadata": {"llama.rope.scaling.attn_factor": 2.0}}, "llama.rope.scaling.attn_factor is not supported"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "tokenizer.ggml.model='llama'"),
        ({"metadata": {"tokenizer.ggml.pre": "deepseek-llm"}}, "tokenizer.ggml.pre='deepseek-llm'"),
        ({"metadata": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens is missing"),
        ({"tensors": {"blk.1.attn_v.weight": None}}, "missing model.layers.1.self_attn.v_proj.weight [24, 72]"),
        ({"tensors": {"blk.0.extra.weight": np.zeros((2, 3), np.float32)}}, "unexpected blk.0.extra.weight [2, 3]"),
        ({"tensors": {"output_norm.weight": np.ones(71, np.float32)}}, "model.norm.weight expected [72], found [71]"),
        ({"tensors": {"rope_freqs.weight": np.full(6, 3.0, np.float32)}}, "rope_freqs.weight is not the RoPE scaling"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", **changes)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "none"}, RopeConfig()),
        ({"type": "linear", "factor": 2.5}, RopeConfig("linear", factor=2.5)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
            RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64),
        ),
    ],
)
def test_rope_scaling_of_the_metadata(tmp_path: Path, scaling: dict[str, Any], expected: RopeConfig) -> None:
    metadata = {f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()}
    assert load(write_gguf(tmp_path / "m.gguf", "qwen2", metadata=metadata)).config.rope == expected


def test_llama3_scaling_is_found_in_its_divisors(tmp_path: Path) -> None:
    plain = load(write_gguf(tmp_path / "plain.gguf", "llama")).config
    rope = RopeConfig("llama3", factor=32.0, original_max_position_embeddings=8192)
    divisors_D2 = inverse_frequencies(plain)[0] / inverse_frequencies(replace(plain, rope=rope))[0]
    tensors = {"rope_freqs.weight": divisors_D2.numpy()}
    assert load(write_gguf(tmp_path / "scaled.gguf", "llama", tensors=tensors)).config.rope == rope


@pytest.fixture(scope="module")
def real_file() -> Path:
    path = cached_model("smollm2-135m")
    if path is None:
        pytest.skip("SmolLM2-135M is not in the cache; fetch it with python -m experiments.fetch smollm2-135m")
    return path


def test_the_real_weights_equal_transformers_reading_of_them(real_file: Path) -> None:
    loaded = load(real_file)
    # transformers takes many seconds to read the vocabulary for its config; the test below checks ours.
    config = transformers.LlamaConfig(
        vocab_size=loaded.config.vocab_size,
        hidden_size=loaded.config.hidden_size,
        intermediate_size=loaded.config.intermediate_size,
        num_hidden_layers=loaded.config.num_layers,
        num_attention_heads=loaded.config.num_heads,
        num_key_value_heads=loaded.config.num_kv_heads,
        tie_word_embeddings=True,
    )
    reference = transformers.LlamaForCausalLM.from_pretrained(
        real_file.parent, gguf_file=real_file.name, config=config, dtype=torch.float32
    )
    assert_same_weights(loaded.weights, reference)


def test_the_real_model_is_the_one_of_the_yaml(real_file: Path) -> None:
    assert gguf_config(open_gguf(real_file)) == load_model_yaml("smollm2-135m")
