"""The models of experiment=shapes: as published, and run by each variant at their hidden sizes, heads and biases."""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from engine import SamplingParams
from engine.loading import LoadedModel
from engine.loading.model_yaml import load_model_yaml
from engine.loading.names import allocate
from engine.loading.random import random_weights
from experiments.compose import compose
from experiments.measuring.reference import reference_logits
from tests.engine.tiny import prompt_of, tiny_engine
from tests.house.tree import ROOT
from tests.shipped import VARIANTS

MODELS = compose(["experiment=shapes"]).models
# fp32 against fp32: sums of up to 3584 terms in another order, logits of size about 1.
MOST_BEHIND = 1e-4


@cache
def cut(name: str) -> LoadedModel:
    """One layer and few words of a model, its intermediate size cut to a sixteenth: what a CPU has at once."""
    config = load_model_yaml(name)
    config = replace(config, num_layers=1, vocab_size=257, intermediate_size=config.intermediate_size // 16)
    return LoadedModel(config, random_weights(config, torch.float32, "cpu", seed=0), None, "tests", "random")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_as_many_parameters_as_its_file_says(name: str) -> None:
    said = re.search(r"([\d,]{9,}) parameters", (ROOT / f"configs/model/{name}.yaml").read_text())
    slots: dict[str, Tensor] = allocate(load_model_yaml(name), torch.bfloat16, "meta").slots
    assert said
    assert sum(math.prod(slot.shape) for slot in slots.values()) == int(said[1].replace(",", ""))


def test_the_shapes_that_issue_four_asks_for_are_among_them() -> None:
    configs = list(map(load_model_yaml, MODELS))
    assert {c.hidden_size for c in configs} >= {576, 896, 960, 1536, 3584}
    assert {c.intermediate_size for c in configs} >= {4864, 8960}
    assert {c.num_heads for c in configs} >= {14, 15}
    assert {c.head_dim for c in configs} == {64, 96, 128}
    assert {c.qkv_bias for c in configs} == {True, False}


@pytest.mark.parametrize("variant", ["baseline", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_its_greedy_tokens_are_the_reference_s(name: str, variant: str) -> None:
    loaded = cut(name)
    prompts = [prompt_of(length, vocab_size=257) for length in (5, 18)]
    engine = tiny_engine(VARIANTS[variant], loaded)
    for output in engine.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True)):
        tokens = torch.tensor(output.prompt_token_ids + output.token_ids)
        logits = reference_logits(loaded, tokens)[len(output.prompt_token_ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
        assert (logits.amax(1) - chosen).max() <= MOST_BEHIND
