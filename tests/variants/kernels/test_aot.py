"""Every fused kernel compiles for sm_90 without spills, and its weights are on their way before it waits."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.argmax import argmax_triton
from tests.kernel_aot import AotCase, assert_fits, assert_recorded, compile_cases, tensor
from variants.kernels.add_squares import add_squares_triton
from variants.kernels.attention_cut import HALVES, WHOLE, Cut, attention_cut
from variants.kernels.decode_qkv_attention import decode_qkv_attention_triton
from variants.kernels.gate_up_silu import norm_gate_up_silu_triton
from variants.kernels.linear_add import linear_add_triton
from variants.kernels.lm_head import norm_lm_head_argmax_triton
from variants.kernels.norm_linear import norm_linear_triton
from variants.kernels.qkv_post import qk_norm_rope_store_triton
from variants.kernels.tile_table import key_of, measured_on, rows_class
from variants.kernels.tiles import Tile

EPS = 1e-6
# The GPU for which is compiled: it runs the tiles that were measured on it, and others by the heuristic.
GPU = "NVIDIA H200"
# One register, stored once and loaded once: ptxas stops at 40 registers of its own accord.
SPILLED_BYTES = {"gate_up_silu 8x3072x1024 from partials": 8}
# Tiles of the kernel before, which left a sum of squares each.
PARTIALS = 64


def measured(op: str, m: int, weight: Tensor) -> Tile | None:
    return measured_on(GPU).tiles.get(key_of(op, *weight.shape), {}).get(str(rows_class(m)))


def launch_normed(
    launcher: Any, op: str, m: int, o: int, k: int, partials: bool, bias: bool, tile: Tile | None
) -> None:
    """Behind a kernel that left sums of squares, or where the residual is still to be added."""
    weight = tensor(o, k)
    launcher(
        tensor(m, k), None if partials else tensor(m, k), weight, tensor(o) if bias else None, EPS,
        tensor(m, PARTIALS, dtype=torch.float32) if partials else None, True, tile or measured(op, m, weight),
    )  # fmt: skip


def norm_linear(m: int, n: int, k: int, partials: bool = True, bias: bool = False, tile: Tile | None = None) -> AotCase:
    launch = partial(launch_normed, norm_linear_triton, "norm_linear", m, n, k, partials, bias, tile)
    name = f"norm_linear {m}x{n}x{k}{' from partials' * partials}{' bias' * bias}"
    return AotCase(name, "_norm_linear_kernel", launch)


def gate_up(m: int, n: int, k: int, partials: bool = True) -> AotCase:
    launch = partial(launch_normed, norm_gate_up_silu_triton, "gate_up_silu", m, 2 * n, k, partials, False, None)
    return AotCase(f"gate_up_silu {m}x{n}x{k}{' from partials' * partials}", "_gate_up_silu_kernel", launch)


def launch_linear_add(m: int, n: int, k: int, tile: Tile | None) -> None:
    weight = tensor(n, k)
    linear_add_triton(tensor(m, k), weight, None, tensor(m, n), True, tile or measured("linear_add", m, weight))


def linear_add(m: int, n: int, k: int, tile: Tile | None = None) -> AotCase:
    name = f"linear_add {m}x{n}x{k}"
    if tile:
        name += f" {tile.path} in {tile.splits} parts" + " dependent" * tile.dependent
    return AotCase(name, "_linear_add_kernel", partial(launch_linear_add, m, n, k, tile))


def launch_lm_head(m: int, n: int, k: int) -> None:
    weight = tensor(n, k)
    tile = measured("lm_head", m, weight)
    norm_lm_head_argmax_triton(tensor(m, k), tensor(m, k), tensor(k), weight, EPS, True, tile)


def lm_head(m: int, n: int, k: int) -> AotCase:
    return AotCase(f"lm_head {m}x{n}x{k}", "_tile_argmax_kernel", partial(launch_lm_head, m, n, k))


def launch_add_squares(k: int, residual: bool) -> None:
    add_squares_triton(tensor(8, k), tensor(8, k) if residual else None, True)


def add_squares(k: int, residual: bool) -> AotCase:
    launch = partial(launch_add_squares, k, residual)
    return AotCase(f"add_squares {k}{'' if residual else ' alone'}", "_add_squares_kernel", launch)


def launch_argmax() -> None:
    argmax_triton(tensor(8, 151936), True)


def qkv_inputs(
    batch: int, num_kv_heads: int, g: int, d: int, norm: bool = True, dtype: torch.dtype = torch.bfloat16
) -> tuple[Any, ...]:
    """The packed projection, both norms' weights, rotary tables, positions, slots and both caches."""
    qkv, gamma = tensor(batch, (g + 2) * num_kv_heads * d, dtype=dtype), tensor(d, dtype=dtype) if norm else None
    rotary, index = tensor(4096, d // 2, dtype=torch.float32), tensor(batch, dtype=torch.int32)
    cache = tensor(1, 64, num_kv_heads, d, dtype=dtype)
    return qkv, gamma, gamma, rotary, rotary, index, index, cache, cache


def launch_qkv_post(d: int) -> None:
    qk_norm_rope_store_triton(*qkv_inputs(8, 8, 2, d), 16, 8, d, EPS, True)


def launch_decode_attention(
    g: int, d: int, batch: int, context: int, num_kv_heads: int, window: int | None, norm: bool, cut: Cut
) -> None:
    tables, lens = tensor(batch, context // 64, dtype=torch.int32), tensor(batch, dtype=torch.int32)
    decode_qkv_attention_triton(
        *qkv_inputs(batch, num_kv_heads, g, d, norm), tables, lens, g * num_kv_heads, num_kv_heads, d, EPS, d**-0.5,
        window, True, cut,
    )  # fmt: skip


def decode_attention(
    g: int, d: int, batch: int = 1, context: int = 32 * 1024, num_kv_heads: int = 8, window: int | None = None
) -> AotCase:
    """The kernel from packed QKV to attention with `g` query heads a key head, where not Hopper's own runs."""
    cut = attention_cut(batch, g * num_kv_heads, num_kv_heads, d, context, 64, 132)
    how = {WHOLE: " whole", HALVES: " halves"}.get(cut, "") + " ahead" * cut.ahead + " window" * (window is not None)
    launch = partial(launch_decode_attention, g, d, batch, context, num_kv_heads, window, True, cut)
    return AotCase(f"decode_attention g={g} d={d} splits={cut.splits}{how}", "_decode_qkv_attention_kernel", launch)


CASES = [
    norm_linear(1, 4096, 1024, partials=False),
    norm_linear(1, 4096, 1024),
    norm_linear(4, 6144, 4096),
    norm_linear(8, 4096, 1024),
    norm_linear(16, 6144, 4096),
    norm_linear(64, 4096, 1024),
    norm_linear(64, 6144, 4096),
    norm_linear(64, 24576, 4096),
    norm_linear(128, 960, 576),
    norm_linear(2048, 6144, 4096),
    linear_add(1, 1024, 3072),
    linear_add(8, 1024, 2048),
    linear_add(16, 1024, 3072),
    linear_add(32, 1024, 3072),
    linear_add(64, 4096, 12288),
    linear_add(2048, 4096, 12288),
    linear_add(64, 4096, 12288, tile=Tile("wide", 64, 128, 64, 8, 3, splits=4)),
    linear_add(256, 1024, 3072, tile=Tile("wide", 64, 64, 64, 4, 5, splits=2, dependent=True)),
    gate_up(1, 3072, 1024, partials=False),
    gate_up(4, 12288, 4096),
    gate_up(8, 3072, 1024),
    gate_up(8, 12288, 4096),
    gate_up(16, 3072, 1024),
    gate_up(64, 12288, 4096),
    gate_up(2048, 12288, 4096),
    # Sizes that are no powers of two: hidden 896, 960, 1536 and 3584, intermediate 4864 and 8960. A bias as Qwen2's.
    norm_linear(1, 1152, 896, partials=False, bias=True),
    *(norm_linear(m, 1152, 896, bias=True) for m in (8, 64, 2048)),
    norm_linear(16, 4608, 3584, bias=True),
    linear_add(1, 896, 4864),
    linear_add(8, 960, 960),
    linear_add(16, 1536, 8960),
    linear_add(2048, 896, 4864),
    gate_up(1, 4864, 896, partials=False),
    gate_up(16, 8960, 1536),
    gate_up(64, 8960, 1536),
    # Small weights whose whole K one gemv program has, and squares itself; hidden 3584 under 18944 and 960 under 2560.
    norm_linear(2, 960, 576, partials=False),
    norm_linear(1, 2048, 1536, partials=False, bias=True),
    linear_add(8, 3584, 18944),
    # Sizes that no table knows, as tiles of up to eight rows come out: 32 or 16 rows of each weight, K in parts.
    norm_linear(8, 4608, 3584, bias=True),
    gate_up(8, 8192, 2048),
    gate_up(8, 8960, 1536, partials=False),
    linear_add(8, 2048, 8192),
    gate_up(8, 18944, 3584),
    gate_up(1, 2560, 960, partials=False),
    lm_head(1, 151936, 896),
    lm_head(8, 151936, 896),
    lm_head(1, 151936, 1024),
    lm_head(64, 151936, 1024),
    lm_head(200, 49152, 576),
    add_squares(1024, residual=True), add_squares(4096, residual=False), add_squares(896, residual=True),
    AotCase("merge_argmax", "_merge_argmax_kernel", launch_argmax),
    AotCase("qkv_post d=96", "_qkv_post_kernel", partial(launch_qkv_post, 96)),
    AotCase("qkv_post", "_qkv_post_kernel", partial(launch_qkv_post, 128)),
    decode_attention(2, 128, 8, 128), decode_attention(4, 128, 8, 128),
    decode_attention(2, 128, 8, 320), decode_attention(4, 128, 8, 320),
    # A head of 192 has three lines of cache, which is no power of two.
    decode_attention(2, 128, 8, 1280), decode_attention(2, 192, 8, 1280),
    decode_attention(2, 128, 64), decode_attention(2, 128), decode_attention(4, 128, window=4096),
    decode_attention(3, 64, num_kv_heads=3), decode_attention(5, 80), decode_attention(16, 128),
    decode_attention(2, 256), decode_attention(32, 128),
    # 14 query heads on 2 key heads; heads of 96, whose halves are padded.
    decode_attention(7, 64, num_kv_heads=2), decode_attention(4, 96), decode_attention(7, 128, num_kv_heads=4),
    decode_attention(6, 128, num_kv_heads=2),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name], SPILLED_BYTES.get(case.name, 0))


def test_what_each_kernel_takes_is_recorded(compiled):
    assert_recorded(compiled)


def test_weights_are_loaded_before_the_wait(compiled):
    head = compiled["norm_linear 1x4096x1024"].ptx.partition("griddepcontrol.wait")[0]
    # 16 rows of 1024 weights over 128 threads, 16 bytes a load.
    assert head.count("ld.global.v4") == 16
    head = compiled["norm_linear 64x4096x1024 from partials"].ptx.partition("griddepcontrol.wait")[0]
    assert "cp.async.bulk.prefetch.L2.global" in head
    assert "ld.global" not in head
    assert "cp.async.cg" not in head


def test_held_weights_are_in_shared_memory_before_the_wait(compiled):
    head, _, tail = compiled["norm_linear 8x4096x1024 from partials"].ptx.partition("griddepcontrol.wait")
    # 16 rows of 1024 weights over 128 threads, 16 bytes a load; then each warp multiplies two eighths of K.
    assert head.count("ld.global.v4") == head.count("st.shared.v4") == 16
    assert "ld.global" in tail
    assert tail.count("mma.sync") == 2 * 1024 // 8 // 16


def test_the_next_kernel_is_let_go_before_the_first_load(compiled):
    """A trigger behind a load waits for it, as soon as the compiler moves a use of what was loaded ahead of it."""
    for name in compiled:
        head, trigger, _ = compiled[name].ptx.partition("griddepcontrol.launch_dependents")
        assert not trigger or "ld.global" not in head, name


def test_nothing_but_weights_is_loaded_before_the_wait(compiled):
    for name in ("linear_add 32x1024x3072", "lm_head 64x151936x1024", "merge_argmax", "qkv_post"):
        head, wait, _ = compiled[name].ptx.partition("griddepcontrol.wait")
        assert wait
        assert "ld.global" not in head


def test_wide_products_use_warp_group_products(compiled):
    for name in (
        "norm_linear 2048x6144x4096 from partials",
        "gate_up_silu 2048x12288x4096 from partials",
        "linear_add 64x4096x12288 wide in 4 parts",
    ):
        assert "wgmma.mma_async" in compiled[name].ptx
        assert "cp.async.bulk.tensor" in compiled[name].ptx
        assert "griddepcontrol" not in compiled[name].ptx


def test_a_dependent_wide_product_pulls_weights_ahead_and_fences_what_it_waited_for(compiled):
    ptx = compiled["linear_add 256x1024x3072 wide in 2 parts dependent"].ptx
    head, wait, tail = ptx.partition("griddepcontrol.wait")
    assert wait
    assert "griddepcontrol.launch_dependents" in head
    assert "cp.async.bulk.prefetch.L2.global" in head
    assert not any(read in head for read in ("ld.global", "cp.async.bulk.tensor"))
    before, fence, after = tail.partition("fence.proxy.async.global")
    assert fence
    assert "cp.async.bulk.tensor" not in before
    assert "cp.async.bulk.tensor" in after


def test_every_row_of_weights_is_pulled_ahead_where_rows_are_more_than_threads():
    pulls = []
    for warps in (4, 8):
        tile = Tile("wide", 64, 256, 64, warps, 3, dependent=True)
        [found] = compile_cases([linear_add(256, 1024, 3072, tile=tile)]).values()
        pulls.append(found.ptx.count("cp.async.bulk.prefetch.L2.global"))
    assert pulls == [2, 1]


@pytest.mark.parametrize(
    "name",
    [
        "linear_add 16x1024x3072",
        "linear_add 32x1024x3072",
        "linear_add 64x4096x12288 wide in 4 parts",
        "decode_attention g=2 d=128 splits=16",
    ],
)
def test_parts_are_published_before_the_ticket_is_drawn(name, compiled):
    head, ticket, tail = compiled[name].ptx.partition("atom.global.gpu.acq_rel")
    assert ticket
    assert head.rindex("st.global") < head.rindex("bar.sync")
    assert "ld.global.cg" in tail


def test_the_tile_ahead_is_pulled_into_l2_before_the_wait(compiled):
    head, _, tail = compiled["decode_attention g=2 d=128 splits=6 ahead"].ptx.partition("griddepcontrol.wait")
    # A line each of a key and of a value a thread.
    assert head.count("prefetch.global.L2") == 2
    assert "prefetch.global.L2" not in tail


def test_old_keys_are_loaded_before_the_wait_and_the_projection_after_it(compiled):
    head, _, tail = compiled["decode_attention g=2 d=128 splits=1"].ptx.partition("griddepcontrol.wait")
    # Keys and values: 64 rows of 128 over 128 threads, 16 bytes a load; and the rotation's two tables and two weights.
    assert head.count("ld.global.v4") == 2 * 8 + 2 * 2 + 2 * 2
    assert "st.global" not in head
    assert "cp.async.cg" not in head
    # Both halves of the queries and of the new key, then what the loop copies.
    before_loop = tail.partition("cp.async.cg")[0]
    assert before_loop.count("ld.global.v4") == 4
