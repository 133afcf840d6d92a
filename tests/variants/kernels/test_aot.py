"""Every fused kernel compiles for sm_90 without spills, and its weights are on their way before it waits."""

import pytest

from engine.kernels._triton import next_power_of_2
from tests.kernel_aot import AotCase, assert_fits, assert_recorded, compile_cases
from variants.kernels.attention_cut import HALVES, SHORT_CONTEXT, WHOLE, Cut, merge_chunk, register_limit
from variants.kernels.qkv_post import HEADS_PER_PROGRAM
from variants.kernels.tiles import Tile, linear_tile

BF16 = ("x", "y", "s", "h", "w", "q", "residual", "bias", "gamma", "qkv", "q_norm", "k_norm", "k_cache", "v_cache")
FP32 = ("partials", "parts", "best", "out_best", "cos", "sin")
MULTIPLES_OF_16 = (
    *("N", "K", "x_stride", "r_stride", "w_stride", "y_stride", "s_stride", "h_stride", "qkv_stride"),
    *("cache_stride_block", "cache_stride_pos", "cache_stride_h"),
)  # fmt: skip
TYPES = (
    {f"{name}_ptr": "*bf16:16" for name in BF16}
    | {f"{name}_ptr": "*fp32:16" for name in FP32}
    | {f"{name}_ptr": "*i32:16" for name in ("tickets", "token", "positions", "slots")}
    | {name: "i32:16" for name in MULTIPLES_OF_16}
    | {
        "out_token_ptr": "*i64:16",
        "M": "i32",
        "num_partials": "i32",
        "p_stride": "i32",
        "num_parts": "i32",
        "eps": "fp32",
    }
)
DECODE_TYPES = (
    TYPES
    | {f"{name}_ptr": "*bf16:16" for name in ("k", "v", "o")}
    | {"lse_ptr": "*fp32:16", "scale_log2": "fp32", "window": "i32", "G": "i32", "table_stride": "i32"}
    | {f"{name}_ptr": "*i32:16" for name in ("tables", "lens")}
)
PDL = {"launch_pdl": True}


def linear(
    module: str, kernel: str, m: int, n: int, k: int, none: tuple[str, ...], weights: int = 1,
    tile: Tile | None = None, **more: object,
) -> AotCase:  # fmt: skip
    """A fused linear layer with the tile its launcher would choose; `none` are the arguments it goes without."""
    tile = tile or linear_tile(m, n, k, 2, 132, weights, can_split="SPLITS" in more)
    described = tile.path == "wide" and (module == "linear_add" or "residual_ptr" in none)
    types = TYPES
    if described:
        types = TYPES | {
            "x_desc": f"tensordesc<bf16[{tile.block_m}, {tile.block_k}]>",
            "w_desc": f"tensordesc<bf16[{tile.block_n}, {tile.block_k}]>",
        }
    elif module != "lm_head":
        none = (*none, "x_desc", "w_desc")
    constexprs = {
        **dict.fromkeys(none), **more,
        "PATH": tile.path, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
        "STAGES": tile.stages, "EVEN": tile.even(k), "ONCE": tile.once(k),
        "PREFETCH": tile.path in ("gemv", "skinny"), "PDL": not described,
    }  # fmt: skip
    if "SPLITS" in more:
        constexprs["SPLITS"] = tile.splits
    origin = " from partials" if "residual_ptr" in none and module != "lm_head" else ""
    name = f"{'held ' if tile.path == 'held' else ''}{module} {m}x{n}x{k}{origin}"
    return AotCase(
        name, f"variants.kernels.{module}:{kernel}", types, constexprs, tile.num_warps, {} if described else PDL
    )


def norm_linear(m: int, n: int, k: int, missing: str, tile: Tile | None = None) -> AotCase:
    return linear("norm_linear", "_norm_linear_kernel", m, n, k, ("bias_ptr", missing), tile=tile, BLOCK_P=64)


def norm_linear_with_bias(m: int, n: int, k: int) -> AotCase:
    """As Qwen2's QKV projection."""
    missing = "partials_ptr" if m <= 2 else "residual_ptr"
    return linear("norm_linear", "_norm_linear_kernel", m, n, k, (missing,), BLOCK_P=64)


def linear_add(m: int, n: int, k: int, tile: Tile | None = None) -> AotCase:
    return linear("linear_add", "_linear_add_kernel", m, n, k, ("bias_ptr",), tile=tile, SPLITS=1)


def gate_up(m: int, n: int, k: int, missing: str, tile: Tile | None = None) -> AotCase:
    none = ("bias_ptr", missing)
    return linear("gate_up_silu", "_gate_up_silu_kernel", m, n, k, none, weights=2, tile=tile, BLOCK_P=64)


def held(m: int, block_n: int, block_k: int, splits: int = 1) -> Tile:
    return Tile("held", m, block_n, block_k, num_warps=8, stages=1, splits=splits)


def lm_head(m: int, n: int, k: int) -> AotCase:
    return linear("lm_head", "_tile_argmax_kernel", m, n, k, () if m <= 2 else ("residual_ptr", "gamma_ptr"))


def add_squares(k: int, residual: bool) -> AotCase:
    block = next_power_of_2(k)
    missing = () if residual else ("residual_ptr",)
    constexprs = {**dict.fromkeys(missing), "BLOCK_K": block, "PDL": True}
    name = f"add_squares {k}{'' if residual else ' alone'}"
    kernel = "variants.kernels.add_squares:_add_squares_kernel"
    return AotCase(name, kernel, TYPES, constexprs, min(16, max(1, block // 512)), PDL)


def decode_attention(g: int, d: int, splits: int, window: bool = False, cut: Cut | None = None) -> AotCase:
    """The kernel from packed QKV to attention with `g` query heads a key head."""
    half, rows, cut = d // 2, next_power_of_2(g), cut or Cut(splits)
    block_half = next_power_of_2(half)
    constexprs = {
        "HALF": half, "BLOCK_HALF": block_half, "BLOCK_G": max(HEADS_PER_PROGRAM, rows), "BLOCK_SIZE": 64,
        "TILE": cut.tile, "SPLITS": splits, "ROWS": rows, "CHUNK": merge_chunk(splits, rows * 2 * block_half),
        "STAGES": cut.stages, "AHEAD": cut.ahead, "PDL": True,
        **dict.fromkeys(("parts_ptr", "lse_ptr", "tickets_ptr") if splits == 1 else ()),
        **({} if window else {"window": None}),
    }  # fmt: skip
    kernel = "variants.kernels.decode_qkv_attention:_decode_qkv_attention_kernel"
    short = {WHOLE: " whole", HALVES: " halves"}.get(cut, "")
    name = f"decode_attention g={g} d={d} splits={splits}{short}" + " ahead" * cut.ahead
    # A context of many tiles a part: the case that is held to fewer registers.
    longest = SHORT_CONTEXT if short else 32 * 1024
    options = PDL | {"maxnreg": register_limit(rows, 2 * block_half, longest, cut)}
    return AotCase(name, kernel, DECODE_TYPES, constexprs, cut.num_warps, options)


CASES = [
    norm_linear(1, 4096, 1024, "partials_ptr"),
    norm_linear(4, 6144, 4096, "residual_ptr"),
    norm_linear(8, 4096, 1024, "residual_ptr"),
    norm_linear(64, 6144, 4096, "residual_ptr"),
    norm_linear(64, 24576, 4096, "residual_ptr"),
    norm_linear(128, 960, 576, "residual_ptr"),
    norm_linear(2048, 6144, 4096, "residual_ptr"),
    norm_linear(2048, 6144, 4096, "residual_ptr"),
    linear_add(1, 1024, 3072),
    linear_add(16, 1024, 3072),
    linear_add(64, 4096, 12288),
    linear_add(2048, 4096, 12288),
    gate_up(1, 3072, 1024, "partials_ptr"),
    gate_up(4, 12288, 4096, "residual_ptr"),
    gate_up(16, 3072, 1024, "residual_ptr"),
    gate_up(64, 12288, 4096, "residual_ptr"),
    gate_up(2048, 12288, 4096, "residual_ptr"),
    # Sizes that are no powers of two: hidden 896, 960, 1536 and 3584, intermediate 4864 and 8960.
    *(norm_linear_with_bias(m, 1152, 896) for m in (1, 8, 64, 2048)),
    norm_linear_with_bias(16, 4608, 3584),
    linear_add(1, 896, 4864),
    linear_add(8, 960, 960),
    linear_add(16, 1536, 8960),
    linear_add(2048, 896, 4864),
    gate_up(1, 4864, 896, "partials_ptr"),
    gate_up(16, 8960, 1536, "residual_ptr"),
    gate_up(64, 8960, 1536, "residual_ptr"),
    # Small weights whose whole K one gemv program has, and squares itself; hidden 3584 under 18944 and 960 under 2560.
    norm_linear(2, 960, 576, "partials_ptr"),
    norm_linear_with_bias(1, 2048, 1536),
    linear_add(8, 3584, 18944),
    # Sizes that no table knows, as tiles of up to eight rows come out: 32 or 16 rows of each weight, K in parts.
    norm_linear_with_bias(8, 4608, 3584),
    gate_up(8, 8192, 2048, "partials_ptr"),
    gate_up(8, 8960, 1536, "partials_ptr"),
    linear_add(8, 2048, 8192),
    gate_up(8, 18944, 3584, "residual_ptr"),
    gate_up(1, 2560, 960, "partials_ptr"),
    norm_linear(16, 6144, 4096, "residual_ptr", held(16, 16, 1024)),
    gate_up(8, 12288, 4096, "residual_ptr", held(8, 16, 512)),
    gate_up(8, 3072, 1024, "residual_ptr"),
    linear_add(8, 1024, 2048),
    linear_add(32, 1024, 3072),
    lm_head(8, 151936, 896),
    lm_head(1, 151936, 1024),
    lm_head(64, 151936, 1024),
    lm_head(200, 49152, 576),
    add_squares(1024, residual=True), add_squares(4096, residual=False), add_squares(896, residual=True),
    AotCase(
        "merge_argmax", "engine.kernels.argmax:_merge_argmax_kernel", TYPES, {"BLOCK": 2048, "PDL": True}, 8, PDL
    ),
    AotCase(
        "qkv_post d=96", "variants.kernels.qkv_post:_qkv_post_kernel", TYPES | {"N": "i32", "M": "i32"},
        {"HALF": 48, "BLOCK_HALF": 64, "BLOCK_SIZE": 64, "HEADS": HEADS_PER_PROGRAM, "PDL": True}, 4, PDL,
    ),
    AotCase(
        "qkv_post", "variants.kernels.qkv_post:_qkv_post_kernel", TYPES | {"N": "i32", "M": "i32"},
        {"HALF": 64, "BLOCK_HALF": 64, "BLOCK_SIZE": 64, "HEADS": HEADS_PER_PROGRAM, "PDL": True}, 4, PDL,
    ),
    decode_attention(2, 128, 1, cut=WHOLE), decode_attention(4, 128, 1, cut=WHOLE),
    decode_attention(2, 128, 2, cut=HALVES), decode_attention(4, 128, 2, cut=HALVES),
    # A head of 192 has three lines of cache, which is no power of two.
    decode_attention(2, 128, 6, cut=Cut(6, ahead=1)), decode_attention(2, 192, 6, cut=Cut(6, ahead=1)),
    decode_attention(2, 128, 1), decode_attention(2, 128, 8), decode_attention(4, 128, 64, window=True),
    decode_attention(3, 64, 8), decode_attention(5, 80, 4), decode_attention(16, 128, 16),
    decode_attention(2, 256, 8), decode_attention(32, 128, 1),
    # 14 query heads on 2 key heads; heads of 96, whose halves are padded.
    decode_attention(7, 64, 8), decode_attention(4, 96, 8), decode_attention(7, 128, 8), decode_attention(6, 128, 8),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


def test_what_each_kernel_takes_is_recorded(compiled):
    assert_recorded(compiled)


def test_weights_are_loaded_before_the_wait(compiled):
    head = compiled["norm_linear 1x4096x1024"].ptx.partition("griddepcontrol.wait")[0]
    # 8 rows of 1024 weights over 128 threads, 16 bytes a load.
    assert head.count("ld.global.v4") == 8
    head = compiled["norm_linear 64x6144x4096 from partials"].ptx.partition("griddepcontrol.wait")[0]
    assert "cp.async.bulk.prefetch.L2.global" in head
    assert "ld.global" not in head
    assert "cp.async.cg" not in head


def test_held_weights_are_in_shared_memory_before_the_wait(compiled):
    head, _, tail = compiled["held norm_linear 8x4096x1024 from partials"].ptx.partition("griddepcontrol.wait")
    # 16 rows of 1024 weights over 256 threads, 16 bytes a load; then each warp multiplies its eighth of K.
    assert head.count("ld.global.v4") == head.count("st.shared.v4") == 8
    assert "ld.global" in tail
    assert tail.count("mma.sync") == 1024 // 8 // 16


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
    for name in ("norm_linear 2048x6144x4096 from partials", "gate_up_silu 2048x12288x4096 from partials"):
        assert "wgmma.mma_async" in compiled[name].ptx
        assert "cp.async.bulk.tensor" in compiled[name].ptx
        assert "griddepcontrol" not in compiled[name].ptx


@pytest.mark.parametrize(
    "name", ["held linear_add 16x1024x3072", "linear_add 32x1024x3072", "decode_attention g=2 d=128 splits=8"]
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
