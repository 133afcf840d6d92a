"""The table of tensors: every element of the packed weights has exactly one name, and misfits are named."""

import pytest
import torch

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.loading.model_yaml import load_model_yaml
from engine.loading.names import allocate, check_tensors

TINY, TINY_LLAMA = load_model_yaml("tiny"), load_model_yaml("tiny-llama")


@pytest.mark.parametrize("config", [TINY, TINY_LLAMA], ids=["tied-qk-norm", "untied-biases"])
def test_slots_cover_every_element_of_the_packed_weights_once(config: ModelConfig) -> None:
    allocation = allocate(config, torch.float32, "cpu")
    weights = allocation.weights
    packed = [weights.embed_VH, weights.final_norm_H, weights.lm_head.weight_NK]
    for layer in weights.layers:
        linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
        packed += [tensor for linear in linears for tensor in (linear.weight_NK, linear.bias_N)]
        packed += [layer.attn_norm_H, layer.q_norm_D, layer.k_norm_D, layer.mlp_norm_H]
    present = [tensor for tensor in packed if tensor is not None]
    for tensor in present:
        tensor.zero_()
    for slot in allocation.slots.values():
        slot.add_(1)
    assert all(bool((tensor == 1).all()) for tensor in present)


def test_a_tied_head_shares_the_embedding_and_has_no_slot() -> None:
    tied, untied = allocate(TINY, torch.float32, "cpu"), allocate(TINY_LLAMA, torch.float32, "cpu")
    assert tied.weights.lm_head.weight_NK is tied.weights.embed_VH
    assert "lm_head.weight" not in tied.slots
    assert untied.slots["lm_head.weight"].data_ptr() != untied.weights.embed_VH.data_ptr()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("smollm2-135m", 134_515_008),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("llama-3.2-1b", 1_235_814_400),
    ],
)
def test_parameter_totals_are_the_published_ones(name: str, published: int) -> None:
    slots = allocate(load_model_yaml(name), torch.float32, "meta").slots
    assert sum(slot.numel() for slot in slots.values()) == published


def found_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(slot.shape) for name, slot in allocate(config, torch.float32, "meta").slots.items()}


def check(config: ModelConfig, found: dict[str, tuple[int, ...]]) -> None:
    check_tensors(allocate(config, torch.float32, "meta").slots, found, "the file")


def test_buffers_and_a_tied_heads_copy_are_no_surplus() -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}
    check(TINY, found_shapes(TINY) | buffer | {"lm_head.weight": (256, 64)})
    check(TINY_LLAMA, found_shapes(TINY_LLAMA) | buffer)


def test_a_missing_tensor_is_named_with_its_shape() -> None:
    found = found_shapes(TINY_LLAMA)
    del found["model.layers.1.self_attn.k_proj.bias"], found["lm_head.weight"]
    with pytest.raises(
        ModelError, match=r"missing lm_head\.weight \[259, 72\], model\.layers\.1\.\S+k_proj\.bias \[24\]"
    ):
        check(TINY_LLAMA, found)


def test_a_surplus_tensor_is_named() -> None:
    with pytest.raises(ModelError, match=r"unexpected model\.layers\.0\.self_attn\.q_proj\.bias \[64\]"):
        check(TINY, found_shapes(TINY) | {"model.layers.0.self_attn.q_proj.bias": (64,)})


def test_a_misshapen_tensor_is_named_with_both_shapes() -> None:
    found = found_shapes(TINY) | {"model.layers.1.mlp.down_proj.weight": (160, 64)}
    with pytest.raises(ModelError, match=r"down_proj\.weight expected \[64, 160\], found \[160, 64\]"):
        check(TINY, found)


def test_many_faults_stay_one_line() -> None:
    with pytest.raises(ModelError, match=r"missing .* and \d+ more; unexpected x \[3\]") as caught:
        check(TINY, {"x": (3,)})
    assert "\n" not in str(caught.value)
