"""Seeded random weights: the same everywhere, of the stated distribution, different where they should be."""

from dataclasses import replace

import pytest
import torch

from engine.loading.model_yaml import load_model_yaml
from engine.loading.names import allocate
from engine.loading.random import NORM_STD, STD, random_weights

TINY, TINY_LLAMA = load_model_yaml("tiny"), load_model_yaml("tiny-llama")


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, again = (random_weights(TINY, torch.float32, "cpu", 7) for _ in range(2))
    other = random_weights(TINY, torch.float32, "cpu", 8)
    assert torch.equal(first.embed_VH, again.embed_VH)
    assert torch.equal(first.layers[1].qkv.weight_NK, again.layers[1].qkv.weight_NK)
    assert not torch.equal(first.layers[1].qkv.weight_NK, other.layers[1].qkv.weight_NK)
    assert not torch.equal(first.layers[0].qkv.weight_NK, first.layers[1].qkv.weight_NK)


def test_a_tensor_depends_on_its_own_name_alone() -> None:
    deeper = random_weights(replace(TINY, num_layers=3, tie_word_embeddings=False), torch.float32, "cpu", 7)
    base = random_weights(TINY, torch.float32, "cpu", 7)
    assert torch.equal(deeper.layers[1].gate_up.weight_NK, base.layers[1].gate_up.weight_NK)


def test_dtypes_hold_the_same_numbers() -> None:
    exact = random_weights(TINY, torch.float32, "cpu", 0).layers[0]
    short = random_weights(TINY, torch.bfloat16, "cpu", 0).layers[0]
    assert torch.equal(exact.qkv.weight_NK, short.qkv.weight_NK.float())
    assert exact.attn_norm_H is not None
    assert short.attn_norm_H is not None
    assert torch.equal(exact.attn_norm_H, short.attn_norm_H.float())


def test_the_distribution_is_the_stated_one() -> None:
    config = replace(TINY_LLAMA, hidden_size=1536)
    weights = random_weights(config, torch.float32, "cpu", 3)
    layer = weights.layers[2]
    assert layer.attn_norm_H is not None
    assert layer.o.bias_N is not None
    for values, mean, std in (
        (layer.gate_up.weight_NK, 0.0, STD),
        (weights.embed_VH, 0.0, STD),
        (layer.o.bias_N, 0.0, STD),
        (layer.attn_norm_H, 1.0, NORM_STD),
    ):
        # Five standard errors of a mean and of a standard deviation.
        error = 5 * std / values.numel() ** 0.5
        assert values.mean().item() == pytest.approx(mean, abs=error + 1e-3 * mean)
        assert values.std().item() == pytest.approx(std, abs=error)


def test_every_slot_is_filled() -> None:
    weights = random_weights(TINY_LLAMA, torch.float32, "cpu", 0)
    filled = [weights.embed_VH, weights.final_norm_H, weights.lm_head.weight_NK]
    filled += [layer.qkv.bias_N for layer in weights.layers]
    for tensor in filled:
        assert tensor is not None
        assert torch.isfinite(tensor).all()
        assert tensor.std() > 0.01
    assert len(allocate(TINY_LLAMA, torch.float32, "meta").slots) == 3 + 3 * 16


@pytest.mark.gpu
def test_the_gpu_repeats_itself() -> None:
    first, again = (random_weights(TINY, torch.bfloat16, "cuda", 7) for _ in range(2))
    assert torch.equal(first.layers[1].down.weight_NK, again.layers[1].down.weight_NK)
    assert first.embed_VH.float().std().item() == pytest.approx(STD, rel=0.05)
