"""From packed QKV to attention in one kernel: against the float64 twin and the kernels it replaces."""

import itertools

import pytest
import torch

from engine.kernels._triton import next_power_of_2
from engine.kernels.decode_attention import MAX_SPLITS, TILE_TOKENS, paged_decode_attention_triton
from engine.sizes import table_widths
from tests.kernel_gates import (
    DEVICE,
    DTYPES,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    relative_error,
    strided,
    tolerance,
    unit_roundoff,
)  # fmt: skip
from variants.kernels import decode_qkv_attention as module
from variants.kernels.attention_cut import (
    FEW_TILES,
    HALVES,
    MAX_TURNS,
    MERGE_ELEMENTS,
    SHORT_CONTEXT,
    WHOLE,
    Cut,
    attention_cut,
    merge_chunk,
    register_limit,
    ring_tiles,
)
from variants.kernels.decode_qkv_attention import (
    decode_qkv_attention,
    decode_qkv_attention_reference,
    decode_qkv_attention_triton,
)
from variants.kernels.linear_add import linear_add_triton
from variants.kernels.qkv_post import qk_norm_rope_store_triton
from variants.kernels.tickets import MAX_TICKETS, tickets
from variants.kernels.tile_table import Trial, trying

EPS = 1e-6
# (query heads, key heads, head dim), block size, splits, norm: groups of 1 to 17, padded halves.
CASES = [
    ((9, 3, 64), 64, 1, False),
    ((9, 3, 64), 16, 3, True),
    ((4, 2, 128), 64, 1, True),
    ((5, 1, 80), 64, 2, True),
    ((2, 2, 96), 128, 1, True),
    ((17, 1, 32), 32, 2, False),
]
GPU_CUTS = [Cut(1), Cut(8), Cut(6, ahead=2), WHOLE, HALVES, Cut(4, 64, 4, 1), Cut(4, 128, 8, 2, ahead=1)]
GPU_CUTS += [Cut(splits, stages=3, ahead=2, hopper=True) for splits in (1, 2, 5, 16)]
# A new key at the start of a page and of a tile, at their ends, alone; a padded row.
LENS = [1, 0, 150, 64, 65, 129]

# The interpreter computes NaN and infinities with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")


def inputs(lens, n, m, d, block_size, dtype, norm=True, unread=float("nan"), window=None):
    """The arguments up to the window. No slot that must not be read holds a number, nor does a padded row's qkv."""
    counts = [-(-length // block_size) for length in lens]
    order = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(1)).tolist()
    tables = torch.full((len(lens), max(counts, default=0) + 1), 2**30, dtype=torch.int32)
    slots = torch.full((len(lens),), -1, dtype=torch.int32)
    caches = [torch.full((len(order), block_size, m, d), unread, dtype=dtype, device=DEVICE) for _ in range(2)]
    qkv = randn(len(lens), (n + 2 * m) * d, dtype=dtype, seed=3)
    for b, length in enumerate(lens):
        if length == 0:
            qkv[b] = float("nan")
        for p in range(counts[b]):
            tables[b, p] = page = order.pop()
            rows = min(block_size, length - 1 - p * block_size)
            for i, cache in enumerate(caches):
                cache[page, :rows] = randn(rows, m, d, dtype=dtype, seed=7777 * i + 100 * b + p)
            slots[b] = page * block_size + (length - 1) % block_size
    lens = torch.tensor(lens, dtype=torch.int32)
    angles = torch.arange(max(lens.tolist(), default=0) + 1)[:, None] / 10_000.0 ** (torch.arange(0, d, 2) / d)
    weights = [1 + randn(d, dtype=dtype, seed=s, scale=0.1) if norm else None for s in (1, 2)]
    moved = [x.to(DEVICE) for x in (angles.cos(), angles.sin(), lens - 1, slots)]
    return [strided(qkv), *weights, *moved, *caches, tables.to(DEVICE), lens.to(DEVICE), n, m, d, EPS, d**-0.5, window]


def copied(args, dtype=None):
    """The same with caches of its own; in another dtype, except the rotary tables."""
    convert = [x.clone() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
    return [x.to(dtype) if dtype and i in (0, 1, 2, 7, 8) and x is not None else x for i, x in enumerate(convert)]


def unfused(args, splits):
    """The two or three kernels that it replaces."""
    q = qk_norm_rope_store_triton(*args[:9], *args[11:15])
    return paged_decode_attention_triton(q, *args[7:11], *args[15:], splits=splits)


def attention_tolerance(dtype):
    """Roundings of result, probabilities and queries, 0.6 u each; the last move scores of deviation 1, at most 2."""
    return 2.4 * unit_roundoff(dtype) + tolerance(torch.float32, sums=64) * 4


def same_bits(x, y):
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "block_size", "splits", "norm"), CASES)
def test_matches_float64_and_is_no_worse_than_unfused(heads, block_size, splits, norm, dtype, monkeypatch):
    args = inputs(LENS, *heads, block_size, dtype, norm)
    before = copied(args)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    expected = unfused(before, splits)
    with monkeypatch.context() as patch:
        guarded = guard_outputs(patch)
        o = decode_qkv_attention_triton(*args, cut=Cut(splits, min(64, block_size)))
        guarded.check()
    assert torch.equal(o[1], torch.zeros_like(o[1]))
    error, own = relative_error(o, oracle), relative_error(expected, oracle)
    print(f"relative error {error:.2e}, unfused {own:.2e}")
    assert error < attention_tolerance(dtype)
    assert error < 1.05 * own + unit_roundoff(torch.float32)
    for cache, stored in zip(args[7:9], before[7:9], strict=True):
        assert same_bits(cache, stored)
    assert not tickets(o.device).any()


@pytest.mark.parametrize("lens", [[1, 2, 17], [200, 33]])
def test_any_number_of_splits_gives_the_same(lens):
    args = inputs(lens, 3, 1, 16, 16, torch.float32)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    for splits in (1, 2, 3, 14):
        o = decode_qkv_attention_triton(*copied(args), cut=Cut(splits, 16))
        assert relative_error(o, oracle) < attention_tolerance(torch.float32)


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize(
    "cut", [Cut(1, 16, stages=1), Cut(3, 16, stages=1), Cut(1, 64, stages=1), Cut(2, 64), Cut(1, 128), Cut(1, 256)]
)
def test_a_tile_may_have_several_pages_and_one_may_travel_ahead(cut, window):
    lens = [200, 33, 1, 0, 66]
    one, two = (inputs(lens, 3, 1, 16, 16, torch.float32, unread=u, window=window) for u in (float("nan"), 1e4))
    oracle = decode_qkv_attention_reference(*copied(one, torch.float64))
    o = decode_qkv_attention_triton(*one, cut=cut)
    assert relative_error(o, oracle) < attention_tolerance(torch.float32)
    assert same_bits(o, decode_qkv_attention_triton(*two, cut=cut))


@pytest.mark.parametrize("splits", [5, 70])
def test_many_parts_are_merged_in_chunks(splits, monkeypatch):
    monkeypatch.setattr("variants.kernels.attention_cut.MERGE_ELEMENTS", 128)
    assert merge_chunk(splits, 64) == 2
    args = inputs([300], 3, 1, 16, 16, torch.float32)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    o = decode_qkv_attention_triton(*args, cut=Cut(splits, 16))
    assert relative_error(o, oracle) < attention_tolerance(torch.float32)


@pytest.mark.parametrize(("window", "splits"), list(itertools.product([1, 37, 64, 1000], [1, 4])))
def test_slides_its_window(window, splits):
    args = inputs([130, 65, 3], 6, 2, 16, 32, torch.float32, window=window)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    o = decode_qkv_attention_triton(*args, cut=Cut(splits, 32))
    assert relative_error(o, oracle) < attention_tolerance(torch.float32)


@pytest.mark.parametrize("splits", [1, 3])
def test_slots_beyond_the_context_are_not_read(splits):
    one, two = (inputs([50, 16, 0], 4, 2, 16, 16, torch.float32, unread=u) for u in (float("nan"), 1e4))
    cut = Cut(splits, 16)
    assert same_bits(decode_qkv_attention_triton(*one, cut=cut), decode_qkv_attention_triton(*two, cut=cut))
    assert two[7].eq(1e4).sum() == one[7].isnan().sum()


@pytest.mark.parametrize("splits", [1, 2])
def test_special_rows_stay_in_their_sequence(splits):
    args = inputs([70, 70, 70, 1, 70], 2, 1, 16, 16, torch.float32)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    args[0][1, 3], args[0][3, 17] = float("nan"), float("inf")
    args[0][2] *= 1e4
    args[0][4] = 0
    o = decode_qkv_attention_triton(*args, cut=Cut(splits, 16))
    assert relative_error(o[0], oracle[0]) < attention_tolerance(torch.float32)
    assert o[1, 0].isnan().all()
    assert relative_error(o[1, 1], oracle[1, 1]) < attention_tolerance(torch.float32)
    assert o[3].isnan().any()
    assert o[2].isfinite().all()
    assert o[4].isfinite().all()


def test_no_rows_and_the_public_function():
    args = inputs([], 2, 1, 16, 16, torch.float32)
    assert decode_qkv_attention_triton(*args).shape == (0, 2, 16)
    one, two = (inputs([5, 0], 2, 1, 16, 16, torch.float32) for _ in range(2))
    torch.testing.assert_close(decode_qkv_attention(*one), decode_qkv_attention_reference(*two))
    torch.testing.assert_close(one[7], two[7], equal_nan=True)


def test_a_cut_on_trial_is_taken(monkeypatch):
    args = inputs([150], 2, 2, 64, 64, torch.float32)
    asked = []
    monkeypatch.setattr(module, "merge_chunk", lambda splits, elements: asked.append(splits) or splits)
    for cut in (Cut(1), Cut(4)):
        with trying(Trial(cut=cut)):
            decode_qkv_attention_triton(*copied(args))
    assert asked == [1, 4]


def test_the_cut_fits_the_page_and_thetickets():
    for block_size in (16, 32, 64, 128, 256):
        assert attention_cut(1, 16, 8, 128, 8192, block_size, 132).tile == min(TILE_TOKENS, block_size)
    assert attention_cut(1, 16, 8, 128, 8192, 64, 132).splits > 1
    assert attention_cut(MAX_TICKETS, 1, 1, 128, 8192, 64, 2**30).splits > 1
    assert attention_cut(MAX_TICKETS + 1, 1, 1, 128, 8192, 64, 2**30).splits == 1


def test_one_tile_is_one_part_and_two_are_halves_where_programs_do_not_wait():
    for hopper in (False, True):
        assert attention_cut(1, 16, 8, 128, 128, 64, 132, hopper) == WHOLE
        assert attention_cut(1, 16, 8, 128, 320, 64, 132, hopper) == HALVES
        assert attention_cut(8, 9, 3, 64, 128, 64, 132, hopper) == WHOLE
    assert attention_cut(8, 16, 8, 128, 320, 64, 132) == HALVES
    assert attention_cut(9, 16, 8, 128, 320, 64, 132) == WHOLE


def test_on_hopper_several_short_contexts_are_rings_as_the_products_leave_room():
    cuts = [attention_cut(batch, 16, 8, 128, most, 64, 132, True) for batch in (2, 8, 16) for most in (128, 320)]
    assert {(cut.hopper, cut.splits, cut.ahead) for cut in cuts} == {(True, 1, 1)}
    assert [cut.stages for cut in cuts] == [4, 4, 4, 4, 3, 3]
    narrow = [attention_cut(batch, 9, 3, 64, 320, 64, 132, True) for batch in (1, 2, 16)]
    assert [(cut.hopper, cut.splits, cut.stages) for cut in narrow] == [(True, 5, 2), (True, 5, 6), (True, 2, 6)]
    assert {cut.ahead for cut in narrow} == {1}


def test_other_short_contexts_have_parts_and_few_tiles_are_fetched_ahead():
    assert attention_cut(1, 16, 8, 256, 320, 64, 132) == Cut(5, 64)
    assert attention_cut(64, 16, 8, 128, 320, 64, 132) == Cut(1, 64)
    assert attention_cut(8, 16, 8, 128, 1280, 64, 132) == Cut(6, 64, ahead=1)
    assert attention_cut(64, 16, 8, 128, 1280, 64, 132).ahead == 0


def test_no_more_parts_than_one_program_merges_at_once():
    for heads in ((28, 4, 128), (14, 2, 64), (16, 8, 128), (9, 3, 64)):
        cut = attention_cut(2, *heads, 8192, 64, 132)
        elements = next_power_of_2(heads[0] // heads[1]) * heads[2]
        assert 1 < cut.splits <= merge_chunk(cut.splits, elements)
    # Small heads would fit more parts than are numbered, and so many large ones not even one.
    assert attention_cut(1, 1, 1, 32, 32 * 1024, 64, 132).splits == MAX_SPLITS
    assert attention_cut(1, 2 * MERGE_ELEMENTS // 128, 1, 128, 8192, 64, 132).splits == 1


def test_a_merge_holds_all_parts_or_as_many_as_fit_and_never_none():
    eighth = MERGE_ELEMENTS // 8
    assert [merge_chunk(splits, eighth) for splits in (1, 3, 8, 9, 64)] == [1, 4, 8, 8, 8]
    assert merge_chunk(64, 2 * MERGE_ELEMENTS) == 1


@pytest.mark.parametrize("heads", [(9, 3, 64), (16, 8, 128), (16, 8, 256)])
def test_no_other_gpu_gets_the_kernel_for_hopper(heads):
    contexts = (64, 128, 192, 320, 1280, 8192)
    cuts = [attention_cut(batch, *heads, most, 64, 132) for batch in (1, 2, 8, 64) for most in contexts]
    assert not any(cut.hopper for cut in cuts)


def test_programs_that_just_fit_the_multiprocessors_do_not_wait():
    """With 128 of them, where the H200's 132 are no multiple of anything: so many programs and one sequence's more."""
    heads = 16, 8, 128
    short = [attention_cut(batch, *heads, SHORT_CONTEXT, 64, 128) for batch in (8, 9, 16)]
    assert short == [HALVES, WHOLE, WHOLE]
    assert attention_cut(17, *heads, SHORT_CONTEXT, 64, 128).tile == TILE_TOKENS
    assert [attention_cut(batch, *heads, 320, 64, 128, True).stages for batch in (8, 9)] == [4, 3]
    assert [ring_tiles(pairs, 1, 64, 128) for pairs in (128, 129)] == [6, 3]
    # Three programs with rings of two tiles are on a multiprocessor at once.
    turn = int(MAX_TURNS * 3 * 128)
    assert [ring_tiles(pairs, 1, 128, 128) for pairs in (turn, turn + 1)] == [3, 2]
    cuts = [attention_cut(batch, *heads, 1280, 64, 128, True) for batch in (turn // 8, turn // 8 + 1)]
    assert [cut.ahead for cut in cuts] == [1, 0]


def test_tiles_are_fetched_ahead_where_a_program_has_few_and_more_than_one():
    cuts = {most: attention_cut(16, 16, 8, 128, most, 64, 132) for most in (384, 12 * 64, 13 * 64)}
    assert {most: cut.splits for most, cut in cuts.items()} == {384: 3, 12 * 64: 3, 13 * 64: 3}
    assert {most: cut.ahead for most, cut in cuts.items()} == {384: 1, FEW_TILES * 3 * 64: 1, 13 * 64: 0}
    assert attention_cut(8, 16, 8, 128, 384, 64, 132) == Cut(6)


def test_tables_are_as_wide_as_short_cuts_reach():
    """One block more, and graphs for these contexts would be cut as longer ones are."""
    for block_size in (16, 32, 64):
        contexts = {block_size * width for width in table_widths(8192, block_size)}
        assert {WHOLE.tile, SHORT_CONTEXT} <= contexts


def test_programs_that_stream_leave_room_for_three_more():
    """A multiprocessor has 65,536 registers, four programs of four warps 512 threads; few tiles are sooner done."""
    cut = Cut(2, 64)
    few = FEW_TILES * 2 * 64
    assert register_limit(16, 128, few + 64, cut) == 65536 // (4 * 4 * 32)
    assert register_limit(16, 128, few, cut) is None
    assert register_limit(32, 128, few + 64, cut) is None
    for block_d in (64, 256):
        assert register_limit(16, block_d, few + 64, cut) is None


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(16, 8, 128), (32, 8, 128), (9, 3, 64), (16, 1, 128), (14, 2, 64)])
@pytest.mark.parametrize("cut", GPU_CUTS)
def test_long_contexts_match_and_store_the_same_bits(heads, cut):
    lens = [1024, 1000, 17, 0, *range(500, 528)]
    args = inputs(lens, *heads, 64, torch.bfloat16)
    before = copied(args)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    expected = unfused(before, cut.splits)
    o = decode_qkv_attention_triton(*args, cut=cut)
    assert relative_error(o, oracle) < 1.05 * relative_error(expected, oracle)
    assert same_bits(args[7], before[7])
    assert same_bits(args[8], before[8])


@pytest.mark.gpu
@pytest.mark.parametrize("cut", GPU_CUTS)
@pytest.mark.parametrize("lens", [[1024, 1000, 17, 0], [129]])
def test_deterministic_and_the_same_under_pdl(lens, cut):
    layers = [inputs(lens, 16, 8, 128, 64, torch.bfloat16) for _ in range(4)]
    for layer in layers:
        layer[0] = layer[0].nan_to_num().contiguous()
    assert_deterministic(lambda: decode_qkv_attention_triton(*layers[0], cut=cut))
    weights = [randn(4096, 2048, dtype=torch.bfloat16, seed=s, scale=0.03) for s in range(4)]
    first = layers[0][0]

    def chain(pdl):
        qkv, seen = first, []
        for layer, weight in zip(layers, weights, strict=True):
            o = decode_qkv_attention_triton(qkv, *layer[1:], pdl=pdl, cut=cut)
            qkv, _ = linear_add_triton(o.flatten(1), weight, None, first, pdl)
            seen += [o, layer[7], layer[8]]
        return torch.cat([x.flatten() for x in seen])

    assert_pdl_changes_nothing(chain, lambda: first.normal_())
    assert not tickets(first.device).any()
