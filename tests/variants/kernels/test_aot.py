"""Every fused kernel compiles for sm_90 without spills, and its weights are on their way before it waits."""

import pytest

from tests.kernel_aot import AotCase, assert_fits, compile_cases
from variants.kernels.tiles import linear_tile

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
        "num_tiles": "i32",
        "eps": "fp32",
    }
)
PDL = {"launch_pdl": True}


def linear(
    module: str, kernel: str, m: int, n: int, k: int, none: tuple[str, ...], weights: int = 1, **more: object
) -> AotCase:
    """A fused linear layer with the tile its launcher would choose; `none` are the arguments it goes without."""
    tile = linear_tile(m, n, k, 2, 132, weights, can_split="SPLITS" in more)
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
        "STAGES": tile.stages, "EVEN": k % tile.block_k == 0, "PREFETCH": tile.path != "wide",
        "PDL": not described,
    }  # fmt: skip
    if "SPLITS" in more:
        constexprs["SPLITS"] = tile.splits
    origin = " from partials" if "residual_ptr" in none else ""
    name = f"{module} {m}x{n}x{k}{origin}"
    return AotCase(
        name, f"variants.kernels.{module}:{kernel}", types, constexprs, tile.num_warps, {} if described else PDL
    )


def norm_linear(m: int, n: int, k: int, missing: str) -> AotCase:
    return linear("norm_linear", "_norm_linear_kernel", m, n, k, ("bias_ptr", missing), BLOCK_P=64)


def linear_add(m: int, n: int, k: int) -> AotCase:
    return linear("linear_add", "_linear_add_kernel", m, n, k, ("bias_ptr",), SPLITS=1)


def gate_up(m: int, n: int, k: int, missing: str) -> AotCase:
    return linear("gate_up_silu", "_gate_up_silu_kernel", m, n, k, ("bias_ptr", missing), weights=2, BLOCK_P=64)


def lm_head(m: int, n: int, k: int) -> AotCase:
    return linear("lm_head", "_tile_argmax_kernel", m, n, k, ())


CASES = [
    norm_linear(1, 4096, 1024, "partials_ptr"),
    norm_linear(4, 6144, 4096, "partials_ptr"),
    norm_linear(8, 4096, 1024, "partials_ptr"),
    norm_linear(64, 6144, 4096, "partials_ptr"),
    norm_linear(64, 24576, 4096, "residual_ptr"),
    norm_linear(128, 960, 576, "partials_ptr"),
    norm_linear(2048, 6144, 4096, "partials_ptr"),
    norm_linear(2048, 6144, 4096, "residual_ptr"),
    linear_add(1, 1024, 3072),
    linear_add(16, 1024, 3072),
    linear_add(64, 4096, 12288),
    linear_add(2048, 4096, 12288),
    gate_up(1, 3072, 1024, "partials_ptr"),
    gate_up(4, 12288, 4096, "residual_ptr"),
    gate_up(16, 3072, 1024, "partials_ptr"),
    gate_up(64, 12288, 4096, "residual_ptr"),
    gate_up(2048, 12288, 4096, "residual_ptr"),
    lm_head(1, 151936, 1024),
    lm_head(64, 151936, 1024),
    lm_head(200, 49152, 576),
    AotCase(
        "merge_argmax", "variants.kernels.lm_head:_merge_argmax_kernel", TYPES, {"BLOCK": 2048, "PDL": True}, 8, PDL
    ),
    AotCase(
        "qkv_post", "variants.kernels.qkv_post:_qkv_post_kernel", TYPES | {"N": "i32", "M": "i32"},
        {"HALF": 64, "BLOCK_HALF": 64, "BLOCK_SIZE": 64, "HEADS": 8, "PDL": True}, 4, PDL,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


def test_weights_are_loaded_before_the_wait(compiled):
    head = compiled["norm_linear 1x4096x1024"].ptx.partition("griddepcontrol.wait")[0]
    # 8 rows of 1024 weights over 128 threads, 16 bytes a load.
    assert head.count("ld.global.v4") == 8
    head = compiled["norm_linear 64x6144x4096"].ptx.partition("griddepcontrol.wait")[0]
    assert "cp.async.bulk.prefetch.L2.global" in head
    assert "ld.global" not in head
    assert "cp.async.cg" not in head


def test_nothing_but_weights_is_loaded_before_the_wait(compiled):
    for name in ("linear_add 16x1024x3072", "lm_head 64x151936x1024", "merge_argmax", "qkv_post"):
        head, wait, _ = compiled[name].ptx.partition("griddepcontrol.wait")
        assert wait
        assert "ld.global" not in head


def test_wide_products_use_warp_group_products(compiled):
    for name in ("norm_linear 2048x6144x4096 from partials", "gate_up_silu 2048x12288x4096 from partials"):
        assert "wgmma.mma_async" in compiled[name].ptx
        assert "cp.async.bulk.tensor" in compiled[name].ptx
        assert "griddepcontrol" not in compiled[name].ptx


def test_parts_are_published_before_the_ticket_is_drawn(compiled):
    ptx = compiled["linear_add 16x1024x3072"].ptx
    head, ticket, tail = ptx.partition("atom.global.gpu.acq_rel")
    assert ticket
    assert head.rindex("st.global") < head.rindex("bar.sync")
    assert "ld.global.cg" in tail
