"""The same kernel for Hopper: when it runs, what the compiler makes of it, and what only its rings can get wrong."""

from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from engine.kernels import _gluon
from tests.engine.kernels.test_prefill_sm90 import on_hopper, with_gluon
from tests.kernel_aot import MAX_SHARED_BYTES, AotCase, assert_fits, assert_recorded, compile_cases
from tests.kernel_gates import relative_error
from tests.variants.kernels.test_aot import launch_decode_attention
from tests.variants.kernels.test_decode_qkv_attention import attention_tolerance, copied, inputs, same_bits, unfused
from variants.kernels.attention_cut import HOPPER_PROGRAMS_PER_SM, Cut, attention_cut, ring_tiles
from variants.kernels.decode_qkv_attention import decode_qkv_attention_reference, decode_qkv_attention_triton
from variants.kernels.decode_qkv_attention_sm90 import NUM_WARPS, hopper_takes_decode


def hopper(splits: int, stages: int = 3, ahead: int = 1) -> Cut:
    return Cut(splits, stages=stages, ahead=ahead, hopper=True)


def aot(
    group: int, d: int, batch: int, num_kv_heads: int = 8, context: int = 1280, norm: bool = True,
    cut: Cut | None = None,
) -> AotCase:  # fmt: skip
    cut = cut or attention_cut(batch, group * num_kv_heads, num_kv_heads, d, context, 64, 132, hopper=True)
    launch = partial(launch_decode_attention, group, d, batch, context, num_kv_heads, None, norm, cut)
    name = f"decode_attention sm90 g={group} d={d} splits={cut.splits} stages={cut.stages}"
    return AotCase(name, "_decode_qkv_attention_kernel_sm90", launch)


CASES = [
    aot(2, 128, 8), aot(4, 128, 16), aot(2, 128, 48), aot(7, 128, 3, norm=False), aot(16, 128, 1, num_kv_heads=1),
    aot(7, 64, 1, num_kv_heads=2, norm=False), aot(16, 64, 24),
    # Tables of few tiles.
    aot(2, 128, 8, context=128), aot(2, 64, 1, context=320),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90_and_fetches_before_it_waits(case, compiled):
    resources = compiled[case.name]
    assert_fits(resources)
    trigger, copy, wait, product = (
        resources.ptx.index(op)
        for op in ("griddepcontrol.launch_dependents", "cp.async.bulk.tensor", "griddepcontrol.wait", "mma.sync")
    )
    assert trigger < copy < wait < product


@with_gluon
def test_what_it_takes_is_recorded(compiled):
    assert_recorded(compiled)


PROGRAMS_CASES = [
    (aot(2, dim, 64, cut=hopper(1, tiles)), programs)
    for dim, by_tiles in HOPPER_PROGRAMS_PER_SM.items()
    for tiles, programs in by_tiles.items()
]


@with_gluon
@pytest.mark.parametrize(("case", "programs"), PROGRAMS_CASES)
def test_as_many_programs_fit_as_the_rings_are_chosen_for(case, programs):
    resources = compile_cases([case])[case.name]
    # Each program has a KiB of its own beside what it asks for.
    assert programs * (resources.shared_bytes + 1024) <= MAX_SHARED_BYTES + 1024
    assert programs * resources.registers * 32 * NUM_WARPS <= 65536


def test_few_sequences_are_cut_into_a_program_a_multiprocessor():
    cuts = {batch: attention_cut(batch, 16, 8, 128, 1280, 64, 132, hopper=True) for batch in (1, 2, 3, 8, 16, 64)}
    assert {batch: cut.splits for batch, cut in cuts.items()} == {1: 8, 2: 8, 3: 5, 8: 2, 16: 1, 64: 1}
    assert all(cut.hopper for cut in cuts.values())


def test_rings_leave_room_for_the_programs_that_there_are():
    wide = {(64, 2): 4, (128, 1): 3, (256, 1): 3, (384, 1): 2, (512, 1): 3}
    assert {key: ring_tiles(*key, 128, 132) for key in wide} == wide
    assert [ring_tiles(pairs, 1, 64, 132) for pairs in (128, 192, 512, 640, 768)] == [6, 3, 3, 2, 3]


def test_turn_after_turn_of_programs_has_small_rings_and_nothing_ahead():
    assert [ring_tiles(pairs, 1, 128, 132) for pairs in (512, 640, 1024, 2048)] == [3, 2, 2, 2]
    assert [ring_tiles(pairs, 1, 64, 132) for pairs in (1024, 2048)] == [2, 2]
    assert attention_cut(256, 16, 8, 128, 1280, 64, 132, hopper=True) == hopper(1, 2, ahead=0)
    assert attention_cut(64, 16, 8, 128, 1280, 64, 132, hopper=True) == hopper(1, 3, ahead=1)


def test_supports_what_fits_a_tile(monkeypatch):
    monkeypatch.setattr(_gluon, "INTERPRETED", False)
    monkeypatch.setattr(_gluon, "is_hopper", lambda index: index == 0)
    monkeypatch.setattr(_gluon, "HAS_GLUON", True)
    with FakeTensorMode(allow_non_fake_inputs=True):

        def fits(heads=16, kv_heads=8, d=128, dtype=torch.bfloat16, block_size=64, window=None, device="cuda"):
            qkv = torch.empty(2, (heads + 2 * kv_heads) * d, dtype=dtype, device=device)
            cache = torch.empty(4, block_size, kv_heads, d, dtype=dtype, device=device)
            return hopper_takes_decode(qkv, cache, heads, window)

        assert fits()
        assert fits(dtype=torch.float16, d=64, heads=14, kv_heads=2, block_size=256)
        assert not fits(window=100)
        assert not fits(block_size=32)
        assert not fits(d=96)
        assert not fits(dtype=torch.float32)
        assert not fits(heads=17, kv_heads=1)
        assert not fits(device="cuda:1")
        assert not fits(device="cpu")
        assert fits(heads=16, kv_heads=1)


@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("heads", "block_size"), [((16, 8, 128), 64), ((14, 2, 64), 128), ((16, 1, 128), 256)])
def test_any_ring_and_any_number_of_parts(heads, block_size, norm, dtype):
    # Ends of tiles and pages, more tiles than a ring has, parts without a key, a padded row.
    args = inputs([1, 2, 0, 64, 65, 66, 129, 700, 1087], *heads, block_size, dtype, norm)
    before = copied(args)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    own = relative_error(unfused(before, 1), oracle)
    for cut in (hopper(1, 2, 0), hopper(2, 4), hopper(3), hopper(8, 2, 2)):
        mine = copied(args)
        o = decode_qkv_attention_triton(*mine, cut=cut)
        error = relative_error(o, oracle)
        assert torch.equal(o[2], torch.zeros_like(o[2]))
        assert error < attention_tolerance(dtype)
        assert error < 1.05 * own
        assert same_bits(mine[7], before[7])
        assert same_bits(mine[8], before[8])


@on_hopper
@pytest.mark.parametrize("splits", [1, 3])
def test_slots_beyond_the_context_are_not_read(splits):
    one, two = (inputs([500, 65, 1, 0], 4, 2, 64, 128, torch.bfloat16, unread=u) for u in (float("nan"), 1e4))
    cut = hopper(splits)
    assert same_bits(decode_qkv_attention_triton(*one, cut=cut), decode_qkv_attention_triton(*two, cut=cut))


@on_hopper
@pytest.mark.parametrize("splits", [1, 2])
def test_special_rows_stay_in_their_sequence(splits):
    args = inputs([300, 300, 300, 1, 300], 2, 1, 64, 64, torch.bfloat16)
    oracle = decode_qkv_attention_reference(*copied(args, torch.float64))
    args[0][1, 3], args[0][3, 17] = float("nan"), float("inf")
    args[0][2] *= 1e4
    args[0][4] = 0
    o = decode_qkv_attention_triton(*args, cut=hopper(splits))
    assert relative_error(o[0], oracle[0]) < attention_tolerance(torch.bfloat16)
    assert o[1, 0].isnan().all()
    assert relative_error(o[1, 1], oracle[1, 1]) < attention_tolerance(torch.bfloat16)
    assert o[3].isnan().any()
    assert o[2].isfinite().all()
    assert o[4].isfinite().all()
