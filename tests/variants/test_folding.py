"""Gamma folded into the linear layer after it: the same function, weights rounded once, nothing else changed.

Shape suffixes: T tokens, N and K a linear layer's output and input.
"""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import Engine, EngineConfig
from engine.loading import load_model
from engine.weights import LayerWeights, Linear
from tests.engine.tiny import CONFIG, tiny_model
from variants import load_variant
from variants.folding import fold, fold_layers


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal values in fp64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_layer_is_the_same_function(bias: bool) -> None:
    """norm(x) W^T + b = (x / rms(x)) (W diag(gamma))^T + b in fp32, gamma of both signs and zero; odd sizes."""
    x_TK, weight_NK = noise(5, 37), noise(11, 37, seed=1)
    gamma_K = noise(37, seed=2)
    gamma_K[3] = 0.0
    bias_N = noise(11, seed=3) if bias else None
    linear = Linear(weight_NK.float(), None if bias_N is None else bias_N.float())
    folded = fold(gamma_K.float(), linear)
    expected = F.linear(F.rms_norm(x_TK, (37,), gamma_K, 1e-6), weight_NK, bias_N)
    deferred = F.linear(F.rms_norm(x_TK, (37,), None, 1e-6), folded.weight_NK.double(), bias_N)
    torch.testing.assert_close(deferred, expected, rtol=1e-5, atol=1e-5)
    assert folded.bias_N is linear.bias_N


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    """The product is taken in fp32: it is the nearest number of the dtype to the product of the two factors."""
    weight_NK, gamma_K = noise(64, 96).to(dtype), (1 + 0.3 * noise(96, seed=1)).to(dtype)
    folded = fold(gamma_K, Linear(weight_NK)).weight_NK
    assert folded.dtype == dtype
    # A product of two such numbers is exact in fp32.
    assert torch.equal(folded, (weight_NK.double() * gamma_K.double()).to(dtype))


def test_a_norm_without_weight_leaves_the_layer_alone() -> None:
    """Nothing to fold, nothing copied."""
    linear = Linear(noise(3, 4))
    assert fold(None, linear) is linear


def test_folding_a_model_touches_two_linears_a_layer() -> None:
    """qkv and gate_up take their norms; everything else, the head and the originals included, stays what it was."""
    original = tiny_model().weights
    before = original.layers[0].qkv.weight_NK.clone()
    folded = fold_layers(original, CONFIG)
    assert torch.equal(original.layers[0].qkv.weight_NK, before)
    for old, new in zip(original.layers, folded.layers, strict=True):
        assert new.attn_norm_H is None
        assert new.mlp_norm_H is None
        assert not torch.equal(new.qkv.weight_NK, old.qkv.weight_NK)
        assert not torch.equal(new.gate_up.weight_NK, old.gate_up.weight_NK)
        for field in fields(LayerWeights):
            if field.name not in ("attn_norm_H", "mlp_norm_H", "qkv", "gate_up"):
                assert getattr(new, field.name) is getattr(old, field.name)
    for name in ("embed_VH", "final_norm_H", "lm_head"):
        assert getattr(folded, name) is getattr(original, name)


def test_folding_twice_is_folding_once() -> None:
    """A session may prepare what is prepared."""
    once = fold_layers(tiny_model().weights, CONFIG)
    twice = fold_layers(once, CONFIG)
    assert all(a.qkv is b.qkv and a.gate_up is b.gate_up for a, b in zip(once.layers, twice.layers, strict=True))


def test_an_engine_keeps_no_weight_that_was_replaced() -> None:
    """The originals would take their memory from the KV cache. Whoever lends the weights keeps them."""
    config = EngineConfig("tiny", dtype="float32", max_model_len=64, num_kv_blocks=4)
    own = Engine(config, load_variant("folded"))
    assert own.loaded.weights is own.model.weights
    lent = load_model("tiny", torch.float32, torch.device("cpu"), 0)
    assert Engine(config, load_variant("folded"), lent).loaded is lent
