"""The same tokens, whatever the engine had to do to make them, in fp32: batch, chunks, preemption, cached prefixes,
overlap, arrivals, and company whose logits are NaN."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.loading import LoadedModel
from engine.loading.random import random_weights
from tests.engine.tiny import (
    GREEDY,
    PROMPTS,
    expected,
    prompt_of,
    run,
    serve,
    tiny_engine,
    tiny_model,
)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="together"),
        pytest.param({"max_num_seqs": 3}, id="few-rows"),
        pytest.param({"max_num_batched_tokens": 8}, id="small-chunks"),
        pytest.param({"max_num_batched_tokens": 23}, id="odd-chunks"),
        pytest.param({"num_kv_blocks": 12}, id="preempted"),
        pytest.param({"num_kv_blocks": 8, "max_num_batched_tokens": 13, "max_num_seqs": 5}, id="everything"),
    ],
)
def test_tokens_do_not_depend_on_company(overlap: bool, caching: bool, config: dict[str, Any]) -> None:
    """Batch, chunks, preemption, cached prefixes and overlap leave greedy tokens as they are alone."""
    engine = tiny_engine(overlap=overlap, enable_prefix_caching=caching, **config)
    assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)
    assert (engine.scheduler.num_preemptions > 0) == ("num_kv_blocks" in config)
    # Again, with whatever is cached now.
    assert serve(engine, PROMPTS[::-1], GREEDY) == expected(PROMPTS[::-1])


def test_a_prefix_hit_gives_the_tokens_of_a_miss() -> None:
    """Prompts that share one, two and all of their blocks; hits are counted."""
    engine = tiny_engine()
    stem = prompt_of(48)
    prompts = [[*stem, 5], [*stem[:32], 9, 9], stem, stem, stem[:16] + prompt_of(20, seed=1)]
    for prompt in prompts:
        assert serve(engine, [prompt], GREEDY) == expected([prompt])
    assert engine.blocks.num_hit_tokens == 32 + 32 + 32 + 16
    assert engine.snapshot()["prefix_hit_rate"] == pytest.approx(112 / sum(map(len, prompts)))


def test_a_cached_answer_is_a_prefix_too() -> None:
    """A conversation goes on: prompt and answer of the last turn are the next turn's beginning."""
    engine = tiny_engine()
    first = engine.generate([PROMPTS[4]], GREEDY)[0]
    turn = [*PROMPTS[4], *first.token_ids, 7, 8]
    assert serve(engine, [turn], GREEDY) == expected([turn])
    # 33 + 24 tokens, of which the last one's keys were never computed: three whole blocks.
    assert engine.blocks.num_hit_tokens == 48


def test_arrivals_in_mid_flight_change_nothing() -> None:
    """Each step brings another request."""
    engine = tiny_engine(max_num_batched_tokens=40)
    ids, finished = [], {}
    for prompt in PROMPTS:
        ids.append(engine.add_request(prompt, GREEDY))
        finished |= {o.request_id: o for o in engine.step() if o.finished}
        engine.check_integrity()
    finished |= run(engine)
    assert [finished[request_id].token_ids for request_id in ids] == expected(PROMPTS)


def test_nan_stays_with_its_request() -> None:
    """A token whose embedding is broken gives NaN logits: some token comes out, and the blocks that held NaN keys and
    values serve other requests afterwards as if nothing had been."""
    engine = tiny_engine(loaded=broken_model(token=5), num_kv_blocks=14)
    broken = [*PROMPTS[3][:9], 5, *PROMPTS[3][10:]]
    clean = [[token if token != 5 else 6 for token in prompt] for prompt in PROMPTS[1:5]]
    sampled = replace(GREEDY, temperature=1.0, seed=1, top_p=0.9)
    for sampling in (GREEDY, sampled):
        answers = engine.generate([clean[0], broken, clean[1]], sampling)
        assert all(0 <= token < 67 for token in answers[1].token_ids)
        assert [answers[0].token_ids, answers[2].token_ids] == expected(clean[:2], sampling)
        assert serve(engine, clean, sampling) == expected(clean, sampling)


def broken_model(token: int) -> LoadedModel:
    """The tiny model with NaN for one token's embedding."""
    model = tiny_model()
    embed_VH = model.weights.embed_VH.clone()
    embed_VH[token] = torch.nan
    return replace(model, weights=replace(model.weights, embed_VH=embed_VH))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_answers_reproduce(dtype: torch.dtype) -> None:
    """No equality across batches is claimed there, for sums are ordered by shape; the same run twice is the same."""
    weights = random_weights(tiny_model().config, dtype, "cpu", seed=0)
    loaded = replace(tiny_model(), weights=weights)
    first, second = (serve(tiny_engine(loaded=loaded, dtype=str(dtype)[6:]), PROMPTS, GREEDY) for _ in range(2))
    assert first == second
    assert all(len(tokens) == 24 for tokens in first)
