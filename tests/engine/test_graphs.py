"""Which graph serves a step: sizes cover every batch, each fallback has a counted reason."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.graphs import GraphCache, GraphKey
from engine.inputs import Layout
from engine.sizes import (
    LAUNCH_BOUND_PRODUCTS,
    PREFILL_GRAPH_TOKENS,
    bucket_sizes,
    mixed_sizes,
    prefill_sizes,
    round_up,
    table_widths,
)


@given(st.integers(1, 600))
def test_sizes_cover_any_number_of_sequences(largest: int) -> None:
    """12, 100 and every other max_num_seqs: each batch has a size, at most 15 rows above it and none above all."""
    sizes = bucket_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == largest
    for batch in range(1, largest + 1):
        size = round_up(batch, sizes)
        assert size is not None
        assert batch <= size <= batch + 15


def test_small_batches_pay_for_few_padded_rows() -> None:
    """Where launches are the bill, padding is too."""
    assert bucket_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert bucket_sizes(64) == [1, 2, 4, *range(8, 65, 8)]
    # Large batches have fewer graphs, each with a step's buffers.
    assert bucket_sizes(256) == [1, 2, 4, *range(8, 256, 16), 256]


def test_nothing_holds_what_is_larger_than_all() -> None:
    """Then a step runs without a graph."""
    assert round_up(9, [1, 2, 4, 8]) is None


@given(st.integers(1, 200_000), st.sampled_from([16, 64, 256]))
def test_table_widths_reach_the_longest_context(max_model_len: int, block_size: int) -> None:
    """Every number of blocks that a sequence can hold has a table that takes it."""
    widths = table_widths(max_model_len, block_size)
    assert widths == sorted(set(widths))
    assert widths[-1] == -(-max_model_len // block_size)
    assert round_up(widths[-1], widths) == widths[-1]


def test_tables_are_one_tile_wide_or_a_quarter_wider_than_a_round_context() -> None:
    """128 tokens, then 256, 1,024 and 4,096 and a quarter more, in whole blocks; and the longest context."""
    assert table_widths(8192, 16) == [8, 20, 80, 320, 512]
    assert table_widths(8192, 64) == [2, 5, 20, 80, 128]
    assert table_widths(8192, 256) == [1, 2, 5, 20, 32]
    assert table_widths(1280, 64) == [2, 5, 20]
    assert table_widths(1281, 64) == [2, 5, 20, 21]
    assert table_widths(100, 64) == [2]


@pytest.mark.gpu
def test_captures_leave_no_workspace_behind_each() -> None:
    """cuBLAS keeps one for every stream that it has seen."""
    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    allocated_bytes = []
    for number in range(6):
        cache = GraphCache(enabled=True)
        cache.capture(GraphKey(Layout(number, 1, 1, 1), True), lambda: (x @ x, None))
        cache.clear()
        torch.cuda.synchronize()
        allocated_bytes.append(torch.cuda.memory_allocated())
    assert allocated_bytes[-1] == allocated_bytes[1]


def test_fallbacks_are_counted_and_the_first_of_each_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A slow engine can say why."""
    cache = GraphCache(enabled=False)
    with caplog.at_level(logging.INFO, logger="fusebench.engine"):
        for reason in ("too long", "off", "too long"):
            cache.fall_back(reason)
    assert cache.fallbacks == {"too long": 2, "off": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "step without a CUDA graph: too long",
        "step without a CUDA graph: off",
    ]


@given(st.integers(1, 20_000), st.integers(1_000, 10**9))
def test_prefill_sizes_cover_every_prompt_that_is_bound_by_launches(budget: int, layer_weights: int) -> None:
    """Up to 2,048 tokens of any model, further for small ones, never more than a step takes; padded by a quarter."""
    sizes = prefill_sizes(budget, layer_weights)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(budget, max(PREFILL_GRAPH_TOKENS, int(LAUNCH_BOUND_PRODUCTS / layer_weights)))
    for tokens in range(1, sizes[-1] + 1):
        size = round_up(tokens, sizes)
        assert size is not None
        assert tokens <= size < tokens + max(64, tokens / 4 + 1)


def test_prefills_have_few_sizes() -> None:
    """Every 64 up to 512, then four to each doubling: each is a graph that is captured before traffic comes."""
    sizes = prefill_sizes(8192, 1000)
    assert [size for size in sizes if size <= 512] == [64 * i for i in range(1, 9)]
    for low in (512, 1024, 2048, 4096):
        assert [size for size in sizes if low < size <= 2 * low] == [low + i * low // 4 for i in range(1, 5)]


def test_steps_with_prompts_and_decodes_are_captured_for_few_shapes() -> None:
    """qwen3-0.6b, qwen3-8b, a step of few tokens, and engines of few sequences; of one, no prompt meets a decode."""
    tokens = [64, 128, 256, 512, 1024, 2048]
    assert mixed_sizes(16_384, 15_728_640, 256) == ([8, 16, 32, 64, 128, 256], [1, 4, 16], tokens)
    assert mixed_sizes(16_384, 192_937_984, 256)[2] == [64, 128, 256]
    assert mixed_sizes(256, 15_728_640, 12)[2] == [64, 128, 256]
    assert mixed_sizes(300, 15_728_640, 12) == ([8, 12], [1, 4, 16], [64, 128, 256])
    assert mixed_sizes(2048, 15_728_640, 5)[:2] == ([5], [1, 4])
    assert mixed_sizes(2048, 15_728_640, 3)[:2] == ([3], [1, 4])
    assert mixed_sizes(2048, 15_728_640, 2)[:2] == ([2], [1])
    assert mixed_sizes(2048, 15_728_640, 1)[1] == []


def test_small_models_have_longer_prefills_in_graphs() -> None:
    """Layers of qwen3-0.6b, of qwen3-8b and of smollm2-135m."""
    assert [prefill_sizes(16_384, weights)[-1] for weights in (15_728_640, 192_937_984, 3_538_944)] == [
        5086,
        2048,
        16_384,
    ]
