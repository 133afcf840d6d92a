"""Two processes answer as one does, in fp32, whatever the variant and whatever the engine has to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import BASELINE, Engine, EngineConfig, EngineError, SamplingParams, UserError, Variant, kv_cache
from engine.loading import load_model
from engine.parallel.followers import Followers
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.tiny import prompt_of, serve
from tests.shipped import VARIANTS

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
SAMPLED = [
    SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=8, top_k=20, top_p=0.9, min_p=0.01, max_tokens=12, ignore_eos=True),
    SamplingParams(repetition_penalty=1.4, logprobs=2, max_tokens=12, ignore_eos=True),
    GREEDY,
]
PROMPTS = [prompt_of(length, vocab_size=131) for length in (1, 16, 33, 50)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with six heads, two for keys and values, every bias, and a head of 131 rows."""
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def engine_of(
    model: Path | str, variant: Variant = BASELINE, followers: Followers | None = None, **changes: Any
) -> Engine:
    sizes = {"block_size": 16, "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    size = 1 if followers is None else 2
    config = EngineConfig(model, "float32", **{**sizes, "num_kv_blocks": 40, **changes}, tensor_parallel_size=size)
    return Engine(config, variant, followers=followers)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
@pytest.mark.parametrize("model", ["llama", "tiny"])
def test_every_variant_gives_the_tokens_of_one_rank(
    followers: Followers, llama: Path, variant: Variant, model: str
) -> None:
    """With biases and an uneven vocabulary, with q and k norms and a tied head; each rank loads its own part."""
    source = llama if model == "llama" else model
    one, two = engine_of(source, variant), engine_of(source, variant, followers)
    for sampling in (GREEDY, SAMPLED[0]):
        assert serve(two, PROMPTS, sampling) == serve(one, PROMPTS, sampling)
    assert two.snapshot()["ranks"] == 2


def test_drawn_tokens_and_their_chances_are_those_of_one_rank(followers: Followers, llama: Path) -> None:
    """Every way to choose at once; rank 0 draws, and the others hear what."""
    one = engine_of(llama).generate(PROMPTS, SAMPLED)
    two = engine_of(llama, followers=followers).generate(PROMPTS, SAMPLED)
    assert [output.token_ids for output in two] == [output.token_ids for output in one]
    assert two[2].logprobs is not None
    assert one[2].logprobs is not None
    chosen = [[row.chosen for row in output.logprobs or []] for output in (two[2], one[2])]
    assert chosen[0] == pytest.approx(chosen[1], abs=1e-4)


@pytest.mark.parametrize("overlap", [True, False])
def test_chunks_preemptions_and_cached_prefixes(followers: Followers, llama: Path, overlap: bool) -> None:
    """A pool that runs out, a budget that cuts prompts, and prompts that are there already."""
    longer = replace(GREEDY, max_tokens=20)
    expected = serve(engine_of(llama), PROMPTS, longer)
    tight = {"num_kv_blocks": 7, "max_num_batched_tokens": 13, "overlap": overlap}
    engine = engine_of(llama, followers=followers, **tight)
    for _ in range(2):
        assert serve(engine, PROMPTS, longer) == expected
    assert engine.scheduler.num_preemptions > 0
    assert engine.blocks.num_hit_tokens > 0


def test_a_model_in_memory_is_handed_to_the_other_rank(followers: Followers, llama: Path) -> None:
    """Whole on rank 0, and there only."""
    loaded = load_model(llama, torch.float32, "cpu", 0)
    gone = EngineConfig("no such model", "float32", max_model_len=128, num_kv_blocks=40, tensor_parallel_size=2)
    engine = Engine(gone, VARIANTS["fused"], loaded, followers)
    assert serve(engine, PROMPTS, GREEDY) == serve(engine_of(llama), PROMPTS, GREEDY)


def test_a_rank_holds_half_of_the_heads(followers: Followers, llama: Path) -> None:
    """Of the weights, and of every page."""
    one, two = engine_of(llama), engine_of(llama, followers=followers)
    for mine, whole in zip(two.runner.caches, one.runner.caches, strict=True):
        assert mine.k.numel() == whole.k.numel() / 2
    layer, whole_layer = two.model.weights.layers[0], one.model.weights.layers[0]
    for name in ("qkv", "o", "gate_up", "down"):
        assert getattr(layer, name).weight_NK.numel() == getattr(whole_layer, name).weight_NK.numel() / 2


def test_the_smaller_pool_counts(followers: Followers, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sizes its own by what its device has left; in nano-vLLM they may then differ (its PR #215)."""
    wanted = kv_cache.wanted_blocks(engine_of(llama).config)
    monkeypatch.setattr(kv_cache, "fitting_blocks", lambda *_: wanted + 5)
    engine = engine_of(llama, followers=followers, num_kv_blocks=None)
    assert len(engine.blocks.blocks) == engine.runner.num_blocks == wanted
    assert serve(engine, PROMPTS, GREEDY) == serve(engine_of(llama), PROMPTS, GREEDY)


def test_engines_share_the_ranks_and_drop_their_runners(followers: Followers, llama: Path) -> None:
    """Two at once, in turns; one that is closed says so, and the other goes on."""
    expected = serve(engine_of(llama), PROMPTS, GREEDY)
    first, second = engine_of(llama, followers=followers), engine_of("tiny", followers=followers)
    first.add_request(PROMPTS[0], GREEDY)
    first.step()
    assert serve(second, PROMPTS, GREEDY) == serve(engine_of("tiny"), PROMPTS, GREEDY)
    first.abort_all()
    assert serve(first, PROMPTS, GREEDY) == expected
    second.close()
    with pytest.raises(EngineError, match="closed"):
        second.generate(PROMPTS, GREEDY)
    assert serve(first, PROMPTS, GREEDY) == expected


def test_ranks_of_another_number_are_refused(followers: Followers, llama: Path) -> None:
    """The config says how many share the model."""
    with pytest.raises(UserError, match="tensor_parallel_size=1, but there are 2 ranks"):
        Engine(replace(engine_of(llama).config), followers=followers)
