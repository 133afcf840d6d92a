"""A written folder is the model that was written: to this engine's loader, and to transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from engine import ModelConfig
from engine.config import RopeConfig
from engine.errors import ModelError
from engine.loading import load_model, save_folder
from engine.loading.export import hf_config
from engine.loading.hf_config import parse_hf_config
from engine.loading.names import slots_of
from experiments.measuring.reference import reference_logits

TOKENS = torch.arange(3, 40)
CONFIG = ModelConfig("qwen3", 67, 24, 40, 2, 3, 1, 8, 512, qk_norm=True, eos_token_ids=(2,))


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_a_written_model_comes_back_and_computes_the_same_elsewhere(name: str, tmp_path: Path) -> None:
    """Bit for bit by our loader; in transformers the same fp32 logits, but for the order of sums."""
    loaded = load_model(name, torch.float32, "cpu", seed=3)
    save_folder(loaded, tmp_path / "model", torch.float32)
    again = load_model(tmp_path / "model", torch.float32, "cpu", seed=0)
    assert again.config == loaded.config
    ours, back = (slots_of(m.weights, m.config) for m in (loaded, again))
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[key], back[key]) for key in ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert theirs.dtype == torch.float32
    with torch.inference_mode():
        logits = theirs(TOKENS[None]).logits[0]
    # Logits are about 1, each a sum of some hundred products: errors of some tens of units in the last place.
    torch.testing.assert_close(logits, reference_logits(loaded, TOKENS), atol=1e-5, rtol=1e-5)


def test_the_stand_in_tokenizer_has_a_word_for_every_id(tmp_path: Path) -> None:
    """And knows the token that ends a text; engines that insist on a tokenizer ask for no more."""
    save_folder(load_model("tiny", torch.float32, "cpu", seed=0), tmp_path / "model", torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.eos_token_id == 1
    assert tokenizer.decode([0, 17, 255]) == " 0 17 255"
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    assert config.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, rope=RopeConfig("yarn", 1e6, 4.0, 128, mscale=0.7, truncate=False)),
        replace(CONFIG, rope=RopeConfig("linear", factor=2.0)),
        replace(CONFIG, architecture="qwen2", qk_norm=False, qkv_bias=True, sliding_window=64),
        replace(CONFIG, architecture="mistral", qk_norm=False, sliding_window=32),
        replace(CONFIG, architecture="mistral", qk_norm=False),
    ],
    ids=lambda config: f"{config.architecture}-{config.rope.kind}-{config.sliding_window}",
)
def test_every_form_of_config_is_written(config: ModelConfig) -> None:
    assert parse_hf_config(hf_config(config, torch.float16), {}, "test") == config


def test_a_form_that_config_json_cannot_say_is_refused() -> None:
    """A Qwen2 has biases on query, key and value; there is no key to leave them out."""
    with pytest.raises(ModelError, match="qwen2 of this form cannot be written"):
        hf_config(replace(CONFIG, architecture="qwen2", qk_norm=False), torch.float32)
