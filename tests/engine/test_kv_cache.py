"""The cache's tensors, and how many pages a device can hold."""

from dataclasses import replace

import pytest
import torch

from engine import Engine, EngineConfig, UserError, kv_cache
from tests.engine.tiny import CONFIG, tiny_model

ENGINE = EngineConfig("tests", "float32", block_size=16, max_model_len=100, max_num_seqs=3, max_num_batched_tokens=64)


def test_layers_have_pages_of_their_own() -> None:
    """Keys and values of every layer, in the dtype and shape that kernels expect, zeroed."""
    caches = kv_cache.allocate(CONFIG, 5, 16, torch.bfloat16, torch.device("cpu"))
    assert len(caches) == CONFIG.num_layers
    for part in (part for cache in caches for part in cache):
        assert part.shape == (5, 16, CONFIG.num_kv_heads, CONFIG.head_dim)
        assert (part.dtype, int(part.count_nonzero())) == (torch.bfloat16, 0)
    assert len({part.data_ptr() for cache in caches for part in cache}) == 2 * CONFIG.num_layers


def test_the_pool_takes_every_sequence_at_its_longest() -> None:
    """Three sequences of 100 tokens: seven pages each."""
    assert kv_cache.wanted_blocks(ENGINE) == 21
    assert Engine(ENGINE, loaded=tiny_model()).snapshot()["blocks"] == 21


def test_the_pool_is_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pages as fit, and a clear error where not one does."""
    block_bytes = 16 * CONFIG.kv_bytes_per_token(4)
    monkeypatch.setattr(kv_cache, "CPU_POOL_BYTES", 4 * block_bytes + 1)
    assert kv_cache.fitting_blocks(ENGINE, CONFIG, torch.float32, 0) == 4
    monkeypatch.setattr(kv_cache, "CPU_POOL_BYTES", block_bytes - 1)
    with pytest.raises(UserError, match=rf"one block of 16 tokens takes {block_bytes:,} bytes"):
        kv_cache.fitting_blocks(ENGINE, CONFIG, torch.float32, 0)


def test_a_pool_that_is_asked_for_is_not_resized() -> None:
    """`num_kv_blocks` is what the engine gets."""
    engine = Engine(replace(ENGINE, num_kv_blocks=2), loaded=tiny_model())
    assert engine.snapshot()["blocks"] == 2
