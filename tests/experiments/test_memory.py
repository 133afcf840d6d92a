"""Whether a model's workers fit together is reckoned from weights, cache and the reference."""

from dataclasses import replace

import pytest

from experiments.compose import compose
from experiments.memory import CONTEXT_BYTES, GIB, WORKSPACE_BYTES, fit_together, warm_bytes
from experiments.models import Model, find_model

H200_BYTES = 141 * GIB
HEADLINE = replace(compose(["experiment=headline", "variants=[baseline,fused]"]), dtype="bfloat16")


def test_the_parts_add_up() -> None:
    model = find_model("qwen3-8b")
    config = replace(compose(["workloads=[decode]", "batches=[512]", "lengths=[1024]"]), dtype="bfloat16")
    # As published: 8.19e9 parameters, of which the input embedding is not read by a step; 144 KiB of cache per token.
    weights, cache = 2 * (8.19e9 - 151936 * 4096), 512 * 1024 * 147_456
    expected = 2 * (weights + CONTEXT_BYTES) + cache + WORKSPACE_BYTES
    assert warm_bytes(model, config) == pytest.approx(expected, rel=0.01)


def test_other_engines_keep_their_cache() -> None:
    """vLLM and nano-vLLM hold one each while any worker measures; transformers gives its back."""
    model = find_model("qwen3-8b")
    sizes = ["workloads=[decode]", "batches=[512]", "lengths=[1024]"]
    ours, peers = (
        replace(compose([*sizes, f"variants=[baseline,{others}]"]), dtype="bfloat16")
        for others in ("fused,folded,compiled", "transformers,vllm,nano_vllm")
    )
    assert warm_bytes(model, peers) - warm_bytes(model, ours) == pytest.approx(2 * 512 * 1024 * 147_456, rel=0.01)


def test_the_reference_counts_where_the_cache_is_small() -> None:
    model = find_model("qwen3-8b")
    config = replace(compose(["workloads=[decode]", "batches=[1]", "lengths=[128]"]), dtype="bfloat16")
    weights = 2 * (8.19e9 - 151936 * 4096)
    expected = 2 * (weights + CONTEXT_BYTES) + 3 * weights + WORKSPACE_BYTES
    assert warm_bytes(model, config) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "smollm2-135m"])
def test_headline_pairs_stay_warm_on_an_h200(name: str) -> None:
    assert fit_together(find_model(name), HEADLINE, H200_BYTES)
    assert not fit_together(find_model(name), HEADLINE, 8 * GIB)


@pytest.mark.parametrize(
    ("name", "sequences", "tokens"),
    [
        ("serving", 32, 256 + 64),  # Of 100 requests 32 run at once, each as long as it can be.
        ("shared_prefix", 4 + 1, 256),
        ("ragged", 4, 128),
    ],
)
def test_the_cache_of_every_kind_counts(name: str, sequences: int, tokens: int) -> None:
    model = find_model("qwen3-8b")
    large = [f"workload.{name}.input_tokens=[32,256000]"] if name == "serving" else [f"lengths=[{1000 * tokens}]"]
    small, grown = (
        warm_bytes(model, replace(compose([f"workloads=[{name}]", *overrides]), dtype="bfloat16"))
        for overrides in ([], large)
    )
    cache = sequences * 147_456 * ((256_000 + 64) if name == "serving" else 1000 * tokens)
    # The small cache is below what the reference takes, the grown one above.
    reference = 6 * (8.19e9 - 151936 * 4096)
    assert grown - small == pytest.approx(cache - reference, rel=0.02)


def test_unknown_sizes_are_taken_to_fit() -> None:
    assert fit_together(Model("hub", "a/hub"), HEADLINE, GIB)
