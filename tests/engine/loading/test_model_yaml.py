"""Model shapes by name: every YAML loads, and a wrong one is refused by key."""

from typing import Any

import pytest

from engine.config import ModelConfig, RopeConfig
from engine.errors import ModelError
from engine.loading.model_yaml import load_model_yaml, model_config_from_mapping, model_names

MINIMAL: dict[str, Any] = {
    "architecture": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 8,
}


@pytest.mark.parametrize("name", model_names())
def test_every_yaml_loads_and_its_heads_divide(name: str) -> None:
    config = load_model_yaml(name)
    assert config.num_heads % config.num_kv_heads == 0
    assert config.head_dim % 2 == 0
    assert config.qk_norm == (config.architecture == "qwen3")
    assert config.eos_token_ids
    assert name == name.lower()


def test_the_llama_has_its_rope_scaling() -> None:
    rope = RopeConfig("llama3", 500_000.0, 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    assert load_model_yaml("llama-3.2-1b").rope == rope


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"model='qwen9' is not one of .*qwen3-0\.6b.*tiny"):
        load_model_yaml("qwen9")


def test_optional_keys_take_the_dataclass_defaults() -> None:
    assert model_config_from_mapping(MINIMAL, "x.yaml") == ModelConfig(**MINIMAL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_head": 3}, "x.yaml: unknown key num_head; the keys are architecture"),
        ({"rope": {"base": 1.0}}, "x.yaml: rope: unknown key base"),
        ({"rope": 3}, "x.yaml: rope must be a mapping"),
        ({"norm_eps": "1e-6"}, "x.yaml: norm_eps='1e-6' is not of type"),
        ({"vocab_size": True}, "x.yaml: vocab_size=True is not of type"),
        ({"architecture": "gpt2"}, "x.yaml: architecture='gpt2' is not of type"),
        ({"rope": {"kind": "longrope"}}, "x.yaml: rope: kind='longrope' is not of type"),
        ({"eos_token_ids": ["a"]}, "x.yaml: eos_token_ids="),
        ({"num_heads": 3, "num_kv_heads": 2}, "x.yaml: num_heads=3 is no multiple of num_kv_heads=2"),
        ({"num_kv_heads": 0}, "x.yaml: num_heads=2 is no multiple of num_kv_heads=0"),
    ],
)
def test_a_wrong_key_or_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        model_config_from_mapping(MINIMAL | change, "x.yaml")
    assert str(caught.value).startswith(message)


def test_a_missing_key_is_named() -> None:
    raw = {key: value for key, value in MINIMAL.items() if key != "head_dim"}
    with pytest.raises(ModelError, match=r"x\.yaml: head_dim is missing"):
        model_config_from_mapping(raw, "x.yaml")
