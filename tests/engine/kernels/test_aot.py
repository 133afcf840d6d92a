"""Every kernel of the baseline compiles for sm_90 without spills."""

from functools import partial

import pytest
import torch
from torch import Tensor

from engine.kernels.activation import silu_mul_triton
from engine.kernels.argmax import argmax_triton
from engine.kernels.decode_attention import paged_decode_attention_triton
from engine.kernels.kv_store import store_kv_triton
from engine.kernels.norm import add_rms_norm_triton, rms_norm_triton
from engine.kernels.prefill_attention import varlen_prefill_attention_triton
from engine.kernels.rope import rope_triton
from engine.kernels.step import advance_triton, publish_triton
from tests.kernel_aot import AotCase, assert_fits, assert_recorded, compile_cases, tensor

TOKENS, BATCH, HEADS, KV_HEADS = 2048, 8, 16, 8


def index(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def qkv(d: int) -> tuple[Tensor, ...]:
    """Queries, keys and values: views of the packed projection."""
    return tensor(TOKENS, HEADS + 2 * KV_HEADS, d).split((HEADS, KV_HEADS, KV_HEADS), dim=1)


def launch_head_norm() -> None:
    rms_norm_triton(qkv(128)[0], tensor(128), 1e-6, True)


def launch_add_norm() -> None:
    add_rms_norm_triton(tensor(TOKENS, 4096), tensor(TOKENS, 4096), tensor(4096), 1e-6, True)


def launch_rope() -> None:
    q, k, _ = qkv(128)
    rope_triton(q, k, index(TOKENS), *(tensor(4096, 64, dtype=torch.float32) for _ in range(2)))


def launch_store_kv() -> None:
    _, k, v = qkv(128)
    store_kv_triton(k, v, *(tensor(1, 64, KV_HEADS, 128) for _ in range(2)), index(TOKENS))


def launch_argmax() -> None:
    argmax_triton(tensor(BATCH, 151936), True)


def launch_silu_mul() -> None:
    silu_mul_triton(tensor(TOKENS, 2 * 3072))


def launch_advance() -> None:
    advance_triton(index(BATCH), index(BATCH), index(BATCH, 80), tensor(BATCH + 1, dtype=torch.int64), 64)


def launch_publish() -> None:
    publish_triton(tensor(BATCH, dtype=torch.int64), index(BATCH), tensor(BATCH + 1, dtype=torch.int64))


def launch_decode(d: int, splits: int, window: int | None) -> None:
    cache = tensor(1, 64, KV_HEADS, d)
    tables, scale = index(BATCH, 80), d**-0.5
    paged_decode_attention_triton(
        tensor(BATCH, HEADS, d), cache, cache, tables, index(BATCH), scale, window, True, splits
    )


def launch_prefill(d: int, max_query: int, block_size: int, window: int | None) -> None:
    cache, cu_seqlens = tensor(1, block_size, KV_HEADS, d), index(BATCH + 1)
    tables, scale = index(BATCH, 80), d**-0.5
    varlen_prefill_attention_triton(qkv(d)[0], cache, cache, tables, index(BATCH), cu_seqlens, max_query, scale, window)


def decode(d: int, splits: int, window: int | None = None) -> AotCase:
    name = f"decode d={d} splits={splits} window={window is not None}"
    return AotCase(name, "_decode_kernel", partial(launch_decode, d, splits, window))


def prefill(d: int, max_query: int, block_size: int, window: int | None = None) -> AotCase:
    name = f"prefill d={d} max_query={max_query} block_size={block_size} window={window is not None}"
    return AotCase(name, "_prefill_kernel", partial(launch_prefill, d, max_query, block_size, window))


CASES = [
    AotCase("rms_norm heads", "_rms_norm_kernel", launch_head_norm),
    AotCase("add_rms_norm", "_rms_norm_kernel", launch_add_norm),
    AotCase("rope", "_rope_kernel", launch_rope),
    AotCase("store_kv", "_store_kv_kernel", launch_store_kv),
    AotCase("part_argmax", "_part_argmax_kernel", launch_argmax),
    AotCase("silu_mul", "_silu_mul_kernel", launch_silu_mul),
    AotCase("advance", "_advance_kernel", launch_advance), AotCase("publish", "_publish_kernel", launch_publish),
    decode(64, 1), decode(128, 1), decode(128, 8), decode(80, 1, window=4096),
    AotCase("merge", "_merge_kernel", partial(launch_decode, 128, 64, None)),
    prefill(64, 2048, 64), prefill(64, 2048, 128), prefill(128, 2048, 64), prefill(128, 16, 16),
    prefill(128, 2048, 64, window=4096), prefill(96, 2048, 64),
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
