"""Whether a model's workers fit together is reckoned from weights, cache and the reference."""

from dataclasses import replace

import pytest

from experiments.compose import compose
from experiments.environment import Environment, Gpu
from experiments.memory import CONTEXT_BYTES, GIB, WORKSPACE_BYTES, fit_together, load_at_once, warm_bytes
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
    # In whole blocks of 16 and of 256 tokens: some are decoded, and each sequence has a block that it does not fill.
    kept = 512 * (1040 + 1280) * 147_456
    assert warm_bytes(model, peers) - warm_bytes(model, ours) == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b"])
def test_five_engines_stay_warm_on_an_h200(name: str) -> None:
    """Else each of them would load anew in each round, for most of a minute."""
    peers = replace(compose(["experiment=peers"]), dtype="bfloat16")
    assert fit_together(find_model(name), peers, H200_BYTES)


def test_the_reference_counts_where_the_cache_is_small() -> None:
    model = find_model("qwen3-8b")
    config = replace(compose(["workloads=[decode]", "batches=[1]", "lengths=[128]"]), dtype="bfloat16")
    weights = 2 * (8.19e9 - 151936 * 4096)
    # The weights as loaded, and the largest matrix in fp32: the head.
    expected = 2 * (weights + CONTEXT_BYTES) + weights + 4 * 151936 * 4096 + WORKSPACE_BYTES
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
    reference = 2 * (8.19e9 - 151936 * 4096) + 4 * 151936 * 4096
    assert grown - small == pytest.approx(cache - reference, rel=0.02)


@pytest.mark.parametrize(
    ("name", "cores", "gpu_gib", "at_once"),
    [
        ("qwen3-0.6b", 16, 141, 8),  # As many as two cores each allow.
        ("qwen3-0.6b", 2, 141, 1),
        # Four warm workers take 67 GB of 139; each that is checked 15 for its weights, 2.5 for the head and 6.4 more.
        ("qwen3-8b", 64, 141, 3),
        ("qwen3-8b", 64, 80, 1),
        ("qwen3-0.6b", 64, None, 32),
    ],
)
def test_as_many_load_side_by_side_as_cores_and_memory_allow(
    name: str, cores: int, gpu_gib: int | None, at_once: int
) -> None:
    gpu = Gpu("GPU", "1", gpu_gib * GIB, 1) if gpu_gib else None
    four = replace(
        compose(["experiment=headline", "variants=[baseline,control,compiled,fused]"]),
        dtype="bfloat16",
        device="cuda" if gpu else "cpu",
    )
    machine = Environment("3.12", "Linux", "cpu", cores, gpu, {})
    assert load_at_once(find_model(name), four, machine) == at_once
    if gpu:
        assert load_at_once(Model("folder", "./folder"), four, machine) == 1, "it may be of any size"


def test_unknown_sizes_are_taken_to_fit() -> None:
    assert fit_together(Model("hub", "a/hub"), HEADLINE, GIB)
