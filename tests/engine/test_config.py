"""An engine's configuration names the key at fault."""

from dataclasses import replace
from typing import Any

import pytest

from engine import Engine, EngineConfig, ModelConfig, UserError
from engine.config import RopeConfig
from tests.engine.tiny import CONFIG


@pytest.mark.parametrize(
    "bad",
    [
        {"dtype": "float8"}, {"max_model_len": 0}, {"max_num_seqs": 0}, {"max_num_batched_tokens": 0},
        {"block_size": 0}, {"block_size": 24}, {"block_size": 8}, {"num_kv_blocks": 0}, {"num_kv_blocks": -3},
        {"gpu_memory_utilization": 0.0}, {"gpu_memory_utilization": 1.5}, {"gpu_memory_utilization": "0.9"},
        {"max_num_seqs": "8"}, {"max_num_seqs": 2.5}, {"max_model_len": None}, {"num_kv_blocks": 8.5}, {"seed": "a"},
        {"enable_prefix_caching": "no"}, {"overlap": 1},
        {"max_num_batched_tokens": 7, "max_num_seqs": 8},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_value_is_named(bad: dict[str, Any]) -> None:
    """Before any weight is loaded."""
    with pytest.raises(UserError, match=next(iter(bad))):
        EngineConfig("tiny", **bad)


def test_unknown_keys_are_errors() -> None:
    """Nothing is dropped silently."""
    with pytest.raises(TypeError, match="max_len"):
        EngineConfig("tiny", max_len=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_a_device_that_is_none_is_named(device: str) -> None:
    """One line with the mend."""
    with pytest.raises(UserError, match="give cpu or cuda"):
        Engine(EngineConfig("tiny", device=device))


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's assertion about how it was built."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        Engine(EngineConfig("tiny", device="cuda"))


def test_more_positions_than_the_model_has_are_an_error() -> None:
    """Rotary tables past the trained length would answer nonsense."""
    with pytest.raises(UserError, match="max_model_len=4097 is beyond the model's 4096 positions"):
        Engine(EngineConfig("tiny", max_model_len=4097))


def test_yarn_adds_positions_that_a_config_need_not_count() -> None:
    """As Qwen2.5's model card has it: the original positions stay in max_position_embeddings."""
    yarn = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=512)
    assert CONFIG.num_positions == 512
    assert replace(CONFIG, rope=yarn).num_positions == 2048
    assert replace(CONFIG, rope=replace(yarn, kind="linear")).num_positions == 512


def test_sizes_follow_from_heads() -> None:
    """Packed projections and the cache of odd shapes."""
    config = ModelConfig("llama", 100, 36, 50, 3, num_heads=6, num_kv_heads=2, head_dim=5, max_position_embeddings=64)
    assert (config.q_size, config.kv_size, config.qkv_size) == (30, 10, 50)
    assert config.kv_bytes_per_token(2) == 2 * 3 * 10 * 2
