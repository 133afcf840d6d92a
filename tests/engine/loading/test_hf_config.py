"""config.json -> ModelConfig: what transformers writes is read back, what the engine cannot run is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from engine.config import RopeConfig
from engine.errors import ModelError
from engine.loading.hf_config import parse_hf_config, read_hf_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}


def parse(raw: dict[str, Any], generation: dict[str, Any] | None = None) -> Any:
    return parse_hf_config(raw, generation or {}, "config.json")


@pytest.mark.parametrize(
    ("raw", "config_class"),
    [(LLAMA, LlamaConfig), (MISTRAL, MistralConfig), (QWEN2, Qwen2Config), (QWEN3, Qwen3Config)],
    ids=["llama", "mistral", "qwen2", "qwen3"],
)
def test_absent_keys_take_the_defaults_of_transformers(raw: dict[str, Any], config_class: Any) -> None:
    ours, theirs = parse(raw), config_class(**{key: value for key, value in raw.items() if key != "architectures"})
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert ours.sliding_window == (None if config_class is LlamaConfig else theirs.sliding_window)


def test_what_each_architecture_adds() -> None:
    biased = parse(LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias, biased.qk_norm) == (True, True, True, False)
    qwen2, qwen3 = parse(QWEN2), parse(QWEN3 | {"attention_bias": True})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, False)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm) == (True, True, True)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig("linear", 5e5, 2.0)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, RopeConfig("dynamic", 10_000.0, 4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, RopeConfig(theta=1e6)),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            RopeConfig("llama3", 5e5, 8.0, 64, 1.0, 4.0),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": None}},
            RopeConfig("yarn", 1e6, 4.0, 256),
        ),
        (
            {
                "original_max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64, "truncate": False},
            },
            RopeConfig("yarn", 10_000.0, 8.0, 32, truncate=False),
        ),
    ],
)
def test_rope_in_the_style_of_transformers_4_and_5(rope: dict[str, Any], expected: RopeConfig) -> None:
    assert parse(LLAMA | rope).rope == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling: rope_type='longrope'"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling: rope_type='su'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters: full_attention="),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2]}}, "mrope_section=[2, 2]"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures='GPT2LMHeadModel'"),
        ({"architectures": ["LlamaModel"]}, "architectures='LlamaModel'"),
        ({"architectures": None, "model_type": "gemma"}, "architectures=None must name one of LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_size": 73}, "hidden_size=73 is no multiple of num_attention_heads=6"),
        ({"head_dim": 11}, "head_dim=11 is odd"),
        ({"num_key_value_heads": 4}, "num_attention_heads=6 is no multiple of num_key_value_heads=4"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": "many"}, "vocab_size='many' must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be an integer of at least 1"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0 must be a number above 0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>' must be a token id"),
    ],
)
def test_what_cannot_be_run_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(LLAMA | change)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_type_stands_in_for_absent_architectures() -> None:
    raw = {key: value for key, value in LLAMA.items() if key != "architectures"}
    assert parse(raw | {"model_type": "llama"}).architecture == "llama"


@pytest.mark.parametrize(
    ("raw", "window"),
    [
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL | {"sliding_window": 32}, 32),
        (QWEN3 | {"sliding_window": 32}, None),
        (QWEN3 | {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3}, None),
        (QWEN2 | {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}, 32),
        (QWEN2 | {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 32),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        (QWEN2 | {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}, None),
        (LLAMA | {"sliding_window": 32}, None),
    ],
)
def test_sliding_window(raw: dict[str, Any], window: int | None) -> None:
    assert parse(raw).sliding_window == window


def test_a_window_in_some_layers_only_is_refused() -> None:
    with pytest.raises(ModelError, match="use_sliding_window"):
        parse(QWEN2 | {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2})


def test_end_of_sequence_ids_come_from_the_generation_config_first() -> None:
    assert parse(LLAMA | {"eos_token_id": 2}).eos_token_ids == (2,)
    assert parse(LLAMA | {"eos_token_id": [2, 5]}).eos_token_ids == (2, 5)
    assert parse(LLAMA | {"eos_token_id": 2}, {"eos_token_id": [7, 8]}).eos_token_ids == (7, 8)
    assert parse(LLAMA | {"eos_token_id": 2}, {"eos_token_id": None}).eos_token_ids == (2,)
    assert parse(LLAMA).eos_token_ids == ()


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        read_hf_config(path)
    path.write_text(json.dumps(LLAMA)[:-5])
    with pytest.raises(ModelError, match=r"config\.json is not readable JSON .* download it again"):
        read_hf_config(path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="holds a list, not a JSON object"):
        read_hf_config(path)
