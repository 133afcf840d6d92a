"""Greedy tokens in fp32 equal transformers', for every architecture and every variant that configs/variant ships."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams, Variant
from engine.loading import LoadedModel, load_model
from tests.engine.checkpoints import tiny_model
from tests.shipped import VARIANTS

NUM_TOKENS = 20
# fp32 forward passes of these models agree to about 1e-5 in their logits: closer candidates are equally right.
NEAR_TIE = 1e-4
ORIGINAL = {"original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, **ORIGINAL}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-llama3-rope": ("llama", {"rope_parameters": {"rope_theta": 1e4, **LLAMA3}}),
    "llama-linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-yarn-rope": ("llama", {"rope_parameters": {"rope_theta": 1e4, **YARN}}),
    "llama-no-bias-tied": ("llama", {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
    "llama-one-head": ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 34}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False, "hidden_size": 60, "intermediate_size": 51}),
    "qwen3": ("qwen3", {}),
    "qwen3-all-heads-kv": ("qwen3", {"num_key_value_heads": 6}),
}


class Case(NamedTuple):
    """A checkpoint as the engine loads it and as transformers does, with prompts for both."""

    loaded: LoadedModel
    transformers: Any
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Cases by name, each made when first asked for."""

    @functools.cache
    def make(name: str) -> Case:
        architecture, overrides = CASES[name]
        model = tiny_model(architecture, **overrides)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(3, model.config.vocab_size, (n,), generator=generator).tolist() for n in (1, 17, 61)]
        return Case(load_model(folder, torch.float32, "cpu", seed=0), model, prompts)

    return make


def assert_greedy(model: Any, prompt: list[int], tokens: list[int]) -> None:
    """Every token is transformers' likeliest after the prompt and the tokens before it: its greedy answer, that is."""
    with torch.inference_mode():
        logits_TV = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float()
    chosen_T = logits_TV.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
    behind_T = logits_TV.max(dim=-1).values - chosen_T
    assert behind_T.max() <= NEAR_TIE, f"token {int(behind_T.argmax())} is {float(behind_T.max()):.3g} behind the best"


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
@pytest.mark.parametrize("name", CASES)
def test_tokens_equal_those_of_transformers(case_of: Callable[[str], Case], name: str, variant: Variant) -> None:
    """Three prompts in one batch, prefilled in chunks of at most 32 tokens, mixed with decodes."""
    case = case_of(name)
    config = EngineConfig(
        "tests", "float32", max_model_len=128, max_num_seqs=3, max_num_batched_tokens=32, block_size=16,
        num_kv_blocks=24,
    )  # fmt: skip
    engine = Engine(config, variant, case.loaded)
    outputs = engine.generate(case.prompts, SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True))
    for prompt, output in zip(case.prompts, outputs, strict=True):
        assert len(output.token_ids) == NUM_TOKENS
        assert_greedy(case.transformers, prompt, output.token_ids)
