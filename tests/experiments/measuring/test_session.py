"""One model, one variant, a fresh engine per cell, the same prompts for everybody."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.errors import UserError
from experiments.measuring.session import MAX_MODEL_LEN, hash_weights, resolve_model, tensors
from experiments.records import Point
from tests.experiments.measuring.sessions import session_of

POINT = Point("tiny", "decode", 3, 24)


def test_prompts_are_the_same_for_every_variant() -> None:
    """Seeded by the run and the point: whoever runs it, and whatever ran before."""
    sessions = [session_of("tiny", variant) for variant in ("baseline", "folded")]
    sessions[1].prompts(POINT, 5)
    first, second = (session.prompts(POINT, 7) for session in sessions)
    assert first == second
    assert len(first) == 3
    assert all(len(prompt) == 7 for prompt in first)
    assert all(0 <= token < 256 for prompt in first for token in prompt)


def test_prompts_differ_by_seed_point_and_salt() -> None:
    """No two cells, and no two repeats of one, find each other's prompts in a cache."""
    session = session_of()
    first = session.prompts(POINT, 16)
    assert first != session.prompts(POINT, 16, salt=1)
    assert first != session.prompts(replace(POINT, length=25), 16)
    assert first != session.prompts(replace(POINT, workload="prefill"), 16)
    assert first != session_of(seed=1).prompts(POINT, 16)


def test_variants_start_from_the_same_weights() -> None:
    """The hash is that of the weights as loaded, whatever a variant makes of them."""
    hashes = {session_of("tiny", variant).weights_hash for variant in ("baseline", "folded", "fused")}
    assert len(hashes) == 1
    assert session_of("tiny", seed=1).weights_hash not in hashes


def test_the_hash_sees_every_tensor() -> None:
    """One changed number anywhere near a tensor's start."""
    weights = session_of().original.weights
    found = {hash_weights(weights)}
    for tensor in tensors(weights):
        tensor.view(-1)[0] += 1
        found.add(hash_weights(weights))
    # A tied head is the embedding: changed twice.
    assert len(found) == len(tensors(weights)) + 1


def test_an_engine_is_as_large_as_its_cell() -> None:
    """Pages for its sequences and no more; prefixes are never cached; nothing is shared with the last engine."""
    session = session_of()
    engine = session.engine(3, 70, 210)
    assert len(engine.blocks.blocks) == 3 * 2
    assert not engine.blocks.prefix_caching
    assert engine.config.max_model_len == MAX_MODEL_LEN
    assert engine.config.max_num_batched_tokens == 210
    other = session.engine(1, 70, 70)
    assert other.runner is not engine.runner
    assert other.model.weights.layers[0].qkv.weight_NK is engine.model.weights.layers[0].qkv.weight_NK


def test_positions_bound_the_engine() -> None:
    """A model shorter than what engines are deployed with."""
    assert session_of("tiny-llama").engine(1, 70, 70).config.max_model_len == 2048


def test_kernels_on_a_cpu_are_twins() -> None:
    """No speed claim is made from them."""
    assert session_of().kernels == "twin"


@pytest.mark.parametrize(
    ("model", "weights", "expected"),
    [
        ("tiny", "auto", "tiny"),
        ("tiny", "random", "tiny"),
        ("smollm2-135m", "random", "smollm2-135m"),
        ("smollm2-135m", "auto", "smollm2-135m"),
        ("some/hub-id", "real", "some/hub-id"),
    ],
)
def test_what_is_loaded(
    model: str, weights: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in the cache."""
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path))
    assert resolve_model(model, weights) == expected


@pytest.mark.parametrize(("model", "mend"), [("tiny", "give a folder"), ("smollm2-135m", "fusebench fetch")])
def test_real_weights_that_are_not_there(
    model: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by name: an error with its mend, never random ones in their place."""
    monkeypatch.setenv("FUSEBENCH_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=mend):
        resolve_model(model, "real")


def test_half_precision_sessions_hold_half_precision() -> None:
    """Every tensor of the model and its pages."""
    session = session_of("tiny", "folded", dtype="bfloat16")
    assert {tensor.dtype for tensor in tensors(session.loaded.weights)} == {torch.bfloat16}
    assert session.engine(1, 16, 16).runner.caches[0].k.dtype == torch.bfloat16
