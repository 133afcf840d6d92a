"""The oracle against transformers: logits of every tiny architecture, in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.loading import load_model
from experiments.measuring.reference import reference_logits
from tests.engine.checkpoints import tiny_model

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=str,
)
def test_logits_equal_transformers(architecture: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """Two implementations that share no code but PyTorch agree to fp32 rounding."""
    model = tiny_model(architecture, **overrides)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(3, 131, (50,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens[None]).logits[0]
        found = reference_logits(load_model(tmp_path, torch.float32, "cpu", seed=0), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_half_precision_weights_are_computed_with_in_fp32() -> None:
    """The oracle of a bf16 model is its weights' own function: that of the same numbers held in fp32."""
    half, full = (load_model("tiny-llama", dtype, "cpu", seed=0) for dtype in (torch.bfloat16, torch.float32))
    tokens = torch.arange(40) % 259
    found = reference_logits(half, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference_logits(full, tokens), rtol=1e-6, atol=1e-6)


def test_a_position_sees_nothing_after_it() -> None:
    """Another end leaves the beginning as it was."""
    loaded = load_model("tiny", torch.float32, "cpu", seed=0)
    tokens = torch.arange(30)
    changed = tokens.clone()
    changed[20:] = 99
    found, other = reference_logits(loaded, tokens), reference_logits(loaded, changed)
    torch.testing.assert_close(found[:20], other[:20])
    assert not torch.allclose(found[20:], other[20:])


def test_the_setting_for_tf32_is_left_as_it_was() -> None:
    """Whatever the engine under test relies on."""
    loaded = load_model("tiny", torch.float32, "cpu", seed=0)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            reference_logits(loaded, torch.arange(3))
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
