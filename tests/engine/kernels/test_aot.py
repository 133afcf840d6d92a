"""Every kernel of the baseline compiles for sm_90 without spills."""

import pytest

from engine.kernels.prefill_attention import prefill_tile
from tests.kernel_aot import AotCase, assert_fits, assert_recorded, compile_cases

POINTERS = {
    f"{name}_ptr": "*bf16:16"
    for name in ("x", "y", "s", "q", "k", "v", "o", "weight", "residual", "k_cache", "v_cache")
}
INDICES = {f"{name}_ptr": "*i32:16" for name in ("tables", "lens", "cu_seqlens", "positions", "slots")}
FP32 = {f"{name}_ptr": "*fp32:16" for name in ("cos", "sin", "lse", "parts")}
OUTPUTS = {"q_out_ptr": "*bf16:16", "k_out_ptr": "*bf16:16"}
STRIDES = {
    name: "i32:16"
    for name in (
        *("x_stride_t", "x_stride_h", "y_stride_t", "y_stride_h", "r_stride_t", "s_stride_t", "k_stride_t"),
        "k_stride_h",
        *("v_stride_t", "v_stride_h", "q_stride_t", "q_stride_b", "q_stride_h", "q_out_stride_t", "q_out_stride_h"),
        *("k_out_stride_t", "k_out_stride_h", "o_stride_t", "o_stride_b", "o_stride_h", "o_stride_s", "table_stride"),
        *("cache_stride_block", "cache_stride_pos", "cache_stride_h", "H", "I"),
    )
}  # fmt: skip
SCALARS = {name: "i32" for name in ("num_rows", "num_heads", "num_q_heads", "num_k_heads", "G", "N", "window")}
TYPES = POINTERS | INDICES | FP32 | OUTPUTS | STRIDES | SCALARS | {"eps": "fp32", "scale_log2": "fp32"}
PDL = {"launch_pdl": True}


def decode(d: int, splits: int, window: bool) -> AotCase:
    constexprs = {
        "D": d, "BLOCK_D": 128 if d > 64 else 64, "BLOCK_G": 16, "BLOCK_SIZE": 64, "TILE": 64, "SPLITS": splits,
        "STAGES": 3, "PDL": True, **({} if window else {"window": None}), **({"lse_ptr": None} if splits == 1 else {}),
    }  # fmt: skip
    types = TYPES | ({"o_ptr": "*fp32:16"} if splits > 1 else {})
    name = f"decode d={d} splits={splits} window={window}"
    return AotCase(name, "engine.kernels.decode_attention:_decode_kernel", types, constexprs, 4, PDL)


def prefill(d: int, max_query: int, block_size: int, window: bool) -> AotCase:
    block_m, keys, warps, stages = prefill_tile(max_query, d, block_size)
    constexprs = {
        "D": d, "BLOCK_D": 128 if d > 64 else 64, "BLOCK_SIZE": block_size, "BLOCK_M": block_m, "TILE": keys,
        "STAGES": stages, **({} if window else {"window": None}),
    }  # fmt: skip
    name = f"prefill d={d} max_query={max_query} block_size={block_size} window={window}"
    return AotCase(name, "engine.kernels.prefill_attention:_prefill_kernel", TYPES, constexprs, warps)


CASES = [
    AotCase(
        "rms_norm heads", "engine.kernels.norm:_rms_norm_kernel", TYPES | {"num_heads": "i32"},
        {"residual_ptr": None, "s_ptr": None, "ROWS": 8, "BLOCK_H": 128, "PDL": True}, 2, PDL,
    ),
    AotCase(
        "add_rms_norm", "engine.kernels.norm:_rms_norm_kernel", TYPES, {"ROWS": 1, "BLOCK_H": 4096, "PDL": True}, 8, PDL
    ),
    AotCase("rope", "engine.kernels.rope:_rope_kernel", TYPES, {"HALF": 64, "BLOCK_HALF": 64, "HEADS": 8}, 2),
    AotCase(
        "store_kv", "engine.kernels.kv_store:_store_kv_kernel", TYPES | {"D": "i32:16"},
        {"BLOCK_SIZE": 64, "HEADS": 8, "BLOCK_D": 128}, 4,
    ),
    AotCase(
        "part_argmax", "engine.kernels.argmax:_part_argmax_kernel",
        TYPES | {"best_ptr": "*fp32:16", "token_ptr": "*i32:16", "num_blocks": "i32", "x_stride": "i32:16"},
        {"BLOCK": 4096, "PDL": True}, 8, PDL,
    ),
    AotCase("silu_mul", "engine.kernels.activation:_silu_mul_kernel", TYPES, {"BLOCK": 1024, "PDL": False}),
    decode(64, 1, False), decode(128, 1, False), decode(128, 8, False), decode(80, 1, True),
    AotCase(
        "merge", "engine.kernels.decode_attention:_merge_kernel", TYPES | {"D": "i32:16"},
        {"SPLITS": 64, "BLOCK_S": 64, "BLOCK_D": 128, "PDL": True}, 4, PDL,
    ),
    prefill(64, 2048, 64, False), prefill(64, 2048, 128, False), prefill(128, 2048, 64, False),
    prefill(128, 16, 16, False), prefill(128, 2048, 64, True), prefill(96, 2048, 64, False),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


def test_what_each_kernel_takes_is_recorded(compiled):
    assert_recorded(compiled)


def test_tensor_cores_and_asynchronous_copies_are_used(compiled):
    prefill_ptx = compiled["prefill d=128 max_query=2048 block_size=64 window=False"].ptx
    assert "wgmma.mma_async" in prefill_ptx
    assert "cp.async.cg" in prefill_ptx
    assert "cp.async.cg" in compiled["decode d=128 splits=1 window=False"].ptx


def test_a_dependent_launch_waits_before_it_reads(compiled):
    """The only loads above the wait are of constants: the norm's weight, and nothing in the other kernels."""
    for name in ("decode d=128 splits=8 window=False", "merge"):
        head, wait, _ = compiled[name].ptx.partition("griddepcontrol.wait")
        assert wait
        assert "ld.global" not in head
    head = compiled["add_rms_norm"].ptx.partition("griddepcontrol.wait")[0]
    assert "ld.global" in head
