"""Every fused kernel compiles for sm_90 without spills, and its weights are on their way before it waits."""

import pytest
from tests.kernel_aot import AotCase, assert_fits, compile_cases

from variants.kernels.tiles import linear_tile

POINTERS = {f"{name}_ptr": "*bf16:16" for name in ("x", "y", "s", "w", "residual", "bias", "gamma")}
STRIDES = {name: "i32:16" for name in ("N", "K", "x_stride", "r_stride", "w_stride", "y_stride", "s_stride")}
SCALARS = {"M": "i32", "num_partials": "i32", "p_stride": "i32", "eps": "fp32"}
TYPES = POINTERS | STRIDES | SCALARS | {"partials_ptr": "*fp32:16"}
PDL = {"launch_pdl": True}


def norm_linear(m: int, n: int, k: int, residual: bool) -> AotCase:
    tile = linear_tile(m, n, k, 2, 132)
    constexprs = {
        "bias_ptr": None, **({"partials_ptr": None} if residual else {"residual_ptr": None}),
        "PATH": tile.path, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "BLOCK_P": 64,
        "STAGES": tile.stages, "EVEN": k % tile.block_k == 0, "PREFETCH": tile.path != "wide", "PDL": True,
    }  # fmt: skip
    name = f"norm_linear m={m} n={n} k={k} residual={residual}"
    return AotCase(name, "variants.kernels.norm_linear:_norm_linear_kernel", TYPES, constexprs, tile.num_warps, PDL)


CASES = [
    norm_linear(1, 4096, 1024, True),
    norm_linear(4, 6144, 4096, True),
    norm_linear(8, 4096, 1024, True),
    norm_linear(64, 6144, 4096, True),
    norm_linear(64, 24576, 4096, False),
    norm_linear(128, 960, 576, True),
    norm_linear(2048, 6144, 4096, True),
    norm_linear(2048, 6144, 4096, False),
]


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


def test_weights_are_loaded_before_the_wait(compiled):
    head = compiled["norm_linear m=1 n=4096 k=1024 residual=True"].ptx.partition("griddepcontrol.wait")[0]
    # 8 rows of 1024 weights over 128 threads, 16 bytes a load.
    assert head.count("ld.global.v4") == 8
    head = compiled["norm_linear m=64 n=6144 k=4096 residual=True"].ptx.partition("griddepcontrol.wait")[0]
    assert "cp.async.bulk.prefetch.L2.global" in head
    assert "ld.global" not in head
    assert "cp.async.cg" not in head


def test_wide_products_use_warp_group_products(compiled):
    assert "wgmma.mma_async" in compiled["norm_linear m=2048 n=6144 k=4096 residual=False"].ptx
