"""The floor formulas against byte and FLOP counts worked out by other means, and figures published for these models."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.config import WorkloadConfig
from experiments.floors import DTYPE_BYTES, Ceilings, Floor, decode_work, floor_of, offline_work, prefill_work
from experiments.lengths import request_lengths
from experiments.records import Point

QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_layers": 28,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "qk_norm": True,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
NANO_VLLM = {"input_tokens": [100, 1024], "output_tokens": [100, 1024]}
H200 = Ceilings(read_bytes_per_s=4.3e12, bf16_flop_per_s=790e12)


def floor_at(
    sizes: dict, kind: str, batch: int, length: int, ceilings: Ceilings = H200, **details: Any
) -> Floor | None:
    """Of a workload of this kind with these details, in bfloat16."""
    return floor_of(sizes, WorkloadConfig("w", kind, **details), Point("m", "w", batch, length), ceilings, 2, seed=3)


@pytest.mark.parametrize(("model", "params"), [(QWEN3_06B, 596_049_920), (SMOLLM2, 134_515_008)])
def test_a_step_without_cache_reads_every_published_parameter_once(model: dict, params: int) -> None:
    assert decode_work(model, [], 2).bytes == 2 * params


@pytest.mark.parametrize(
    ("batch", "length", "bytes_gb", "time_ms"),
    [
        (1, 1024, 1.31, 0.305),
        (8, 1024, 2.13, 0.497),
        (64, 1024, 8.74, 2.031),
        (256, 1024, 31.4, 7.294),
        (1, 128, 1.21, 0.281),
    ],
)
def test_decode_floor_of_qwen3_06b(batch: int, length: int, bytes_gb: float, time_ms: float) -> None:
    floor = floor_at(QWEN3_06B, "decode", batch, length)
    assert floor is not None
    assert floor.bytes / 1e9 == pytest.approx(bytes_gb, rel=5e-3)
    assert floor.floor_ms == pytest.approx(time_ms, rel=2e-3)
    assert floor.bound == "bytes"


@pytest.mark.parametrize(("tokens", "time_ms"), [(512, 0.609), (2048, 2.89), (8192, 18.9)])
def test_prefill_floor_of_qwen3_06b(tokens: int, time_ms: float) -> None:
    floor = floor_at(QWEN3_06B, "prefill", 1, tokens)
    assert floor is not None
    assert floor.floor_ms == pytest.approx(time_ms, rel=3e-3)
    assert floor.bound == "flop"
    assert floor.tokens == tokens


def test_flop_of_a_token_is_twice_its_linear_weights_plus_attention() -> None:
    layer = 576 * (9 + 6) * 64 + 9 * 64 * 576 + 3 * 576 * 1536
    expected = 2 * (30 * layer + 49152 * 576) + 30 * 4 * 9 * 64 * 77
    assert decode_work(SMOLLM2, [77], 2).flop == expected


def test_each_byte_term_grows_with_its_own_cause() -> None:
    kv = 2 * 30 * 3 * 64 * 4
    one, two = decode_work(SMOLLM2, [100], 4), decode_work(SMOLLM2, [100, 100], 4)
    assert two.bytes - one.bytes == 101 * kv + 4 * 576 + 4 * 49152
    assert decode_work(SMOLLM2, [101], 4).bytes - one.bytes == kv
    assert decode_work(SMOLLM2, [100], 4).bytes == 2 * decode_work(SMOLLM2, [100], 2).bytes


def test_biases_are_counted() -> None:
    biased = SMOLLM2 | {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
    extra = decode_work(biased, [], 2).bytes - decode_work(SMOLLM2, [], 2).bytes
    assert extra == 2 * 30 * ((9 + 6) * 64 + 576 + 2 * 1536 + 576)


def test_a_sliding_window_caps_the_context_and_the_causal_square() -> None:
    windowed = SMOLLM2 | {"sliding_window": 100}
    assert decode_work(windowed, [100], 2) == decode_work(SMOLLM2, [100], 2)
    assert decode_work(windowed, [5000], 2) == decode_work(SMOLLM2, [100], 2)
    assert prefill_work(windowed, [80], 2) == prefill_work(SMOLLM2, [80], 2)
    banded, full = prefill_work(windowed, [300], 2).flop, prefill_work(SMOLLM2, [300], 2).flop
    pairs = sum(min(i, 100) for i in range(1, 301))
    assert full - banded == pytest.approx(4 * 30 * 9 * 64 * (300**2 / 2 - pairs), rel=0.01)


def test_requests_are_nano_vllm_s_own() -> None:
    requests = request_lengths(256, (100, 1024), (100, 1024))
    assert sum(output for _, output in requests) == 133_966
    assert all(100 <= n <= 1024 for request in requests for n in request)


def test_offline_work_is_the_sum_of_its_passes() -> None:
    requests = [(5, 1), (7, 3)]
    passes = list(offline_work(SMOLLM2, requests, 2))
    assert passes[0] == prefill_work(SMOLLM2, [5, 7], 2)
    assert passes[1:] == [decode_work(SMOLLM2, [7], 2), decode_work(SMOLLM2, [8], 2)]


def test_offline_floor_bounds_the_published_figure() -> None:
    floor = floor_at(QWEN3_06B, "offline", 256, 0, replace(H200, read_bytes_per_s=4.64e12), **NANO_VLLM)
    assert floor is not None
    assert floor.tokens == 133_966
    assert 1e3 * floor.tokens / floor.floor_ms == pytest.approx(39_500, rel=0.02)


@pytest.mark.parametrize(
    "ceilings",
    [
        None,
        {},
        {"read_bytes_per_s": None, "bf16_flop_per_s": 1e12},
        {"read_bytes_per_s": float("nan"), "bf16_flop_per_s": 1.0},
        {"read_bytes_per_s": 1.0, "bf16_flop_per_s": 0.0},
        {"read_bytes_per_s": 0.0, "bf16_flop_per_s": 1.0},
        {"read_bytes_per_s": 1.0, "bf16_flop_per_s": float("inf")},
        {"read_bytes_per_s": float("inf"), "bf16_flop_per_s": 1.0},
    ],
)
def test_no_floor_is_claimed_without_measured_ceilings(ceilings: dict | None) -> None:
    assert Ceilings.of(ceilings) is None


def test_measured_ceilings_are_read_each_as_itself() -> None:
    assert Ceilings.of({"read_bytes_per_s": 4.3e12, "bf16_flop_per_s": 790e12}) == H200
    assert Ceilings.of({"read_bytes_per_s": 0.5, "bf16_flop_per_s": 0.25}) == Ceilings(0.5, 0.25)


def test_an_element_has_as_many_bytes_as_torch_s() -> None:
    assert {name: getattr(torch, name).itemsize for name in DTYPE_BYTES} == DTYPE_BYTES


def test_no_floor_for_a_workload_without_a_formula() -> None:
    assert floor_at(SMOLLM2, "mystery", 1, 8) is None


def test_a_ragged_step_is_charged_its_own_contexts() -> None:
    """Their sum, which is that of equal ones; under a sliding window less, since a long context is cut off there."""
    ragged = WorkloadConfig("ragged", "decode", sigma=1.0)
    even, uneven = (floor_at(SMOLLM2, "decode", 16, 512, sigma=sigma) for sigma in (0.0, ragged.sigma))
    assert even == uneven
    windowed = SMOLLM2 | {"sliding_window": 512}
    even, uneven = (floor_at(windowed, "decode", 16, 512, sigma=sigma) for sigma in (0.0, ragged.sigma))
    assert even is not None
    assert uneven is not None
    contexts = ragged.contexts(16, 512, 3)
    kv = 2 * 30 * 3 * 64 * 2
    assert even.bytes - uneven.bytes == kv * sum(max(0, context - 512) for context in contexts)


def test_a_shared_prefix_is_read_once_and_seen_by_all() -> None:
    """Against prompts without one: what is computed less, by its own formula."""
    whole, shared = prefill_work(SMOLLM2, [300] * 4, 2), prefill_work(SMOLLM2, [300] * 4, 2, shared=200)
    prefix = prefill_work(SMOLLM2, [200] * 4, 2)
    kv, h, head = 2 * 30 * 3 * 64 * 2, 576, 2 * 4 * 49152 * 576
    assert whole.flop - shared.flop == prefix.flop - head
    assert whole.bytes - shared.bytes == 4 * 200 * (kv + 2 * h) - 200 * kv
    floor = floor_at(SMOLLM2, "shared_prefix", 4, 300, prefix_tokens=200)
    assert floor is not None
    assert (floor.bytes, floor.flop, floor.tokens) == (shared.bytes, shared.flop, 400)


def test_no_token_of_serving_comes_sooner_than_one_step_of_one_sequence() -> None:
    served = floor_at(QWEN3_06B, "serving", 100, 0, input_tokens=[32, 256], output_tokens=[2, 9])
    assert served == floor_at(QWEN3_06B, "decode", 1, 32)
