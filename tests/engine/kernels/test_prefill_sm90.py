"""The Hopper prefill attention: what the compiler makes of it anywhere, and its numbers where there is such a GPU."""

import itertools
import re
import subprocess
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from engine.compilations import Compilations, watch_triton
from engine.kernels import _gluon, prefill_attention
from engine.kernels.prefill_attention import (
    MIN_HOPPER_QUERIES,
    varlen_prefill_attention,
    varlen_prefill_attention_reference,
    varlen_prefill_attention_triton,
)
from engine.kernels.prefill_attention_sm90 import hopper_takes_prefill, varlen_prefill_attention_sm90
from tests.engine.kernels.test_attention import attention_tolerance, pages
from tests.kernel_aot import AotCase, assemble, assert_fits, assert_recorded, compile_cases, tensor
from tests.kernel_gates import DEVICE, assert_deterministic, guard_outputs, randn, relative_error

RAGGED = [1, 63, 64, 0, 65, 127, 128, 129, 200, 513]
EARLIER = [0, 5, 64, 20, 100, 0, 700, 63, 128, 31]


def launch_on_nothing(d: int, block_size: int, dtype: torch.dtype) -> None:
    cache = tensor(1, block_size, 2, d, dtype=dtype)
    tables, lens, cu_seqlens = (tensor(*shape, dtype=torch.int32) for shape in ((8, 80), (8,), (9,)))
    q = tensor(2048, 4, d, dtype=dtype)
    varlen_prefill_attention_sm90(q, cache, cache, tables, lens, cu_seqlens, 2048, d**-0.5)


def aot(d: int, block_size: int = 64, dtype: torch.dtype = torch.bfloat16) -> AotCase:
    name = f"prefill sm90 d={d} block_size={block_size} {'bf16' if dtype == torch.bfloat16 else 'fp16'}"
    return AotCase(name, "_prefill_kernel_sm90", partial(launch_on_nothing, d, block_size, dtype))


CASES = [aot(64), aot(128), aot(128, block_size=256), aot(128, dtype=torch.float16)]
with_gluon = pytest.mark.skipif(
    not _gluon.HAS_GLUON, reason="this Triton's Gluon is not the one that the kernel is for"
)


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


@with_gluon
def test_what_it_takes_is_recorded(compiled):
    assert_recorded(compiled)


@with_gluon
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_products_overlap_the_softmax(case, compiled, tmp_path):
    """And ptxas may move a softmax behind a wait."""
    triton = pytest.importorskip("triton")
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", assemble(compiled[case.name], tmp_path)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Two warpgroups, each with a masked and an unmasked loop; the exponentials lie between its two waits.
    loops = re.findall(r"DEPBAR\.LE gsb0, 0x1 ;(.*?)DEPBAR\.LE gsb0, 0x0 ;", sass, re.DOTALL)
    assert len(loops) == 4
    assert all(loop.count("MUFU.EX2") >= 64 for loop in loops)
    assert not any(re.search(r"\b(LDL|STL|HGMMA)\b", loop) for loop in loops)


def hopper_case(dtype=torch.bfloat16, d=128, block_size=64, cache_dtype=None, device="cuda:0", pad=0, page_stride=1):
    """(q, k cache, v cache) without data, to be made in a FakeTensorMode."""
    q = torch.empty_strided((2048, 4, d), (8 * d + pad, d, 1), dtype=dtype, device=device)
    page = block_size * 2 * d
    shape, strides = (40, block_size, 2, d), (page_stride * page, 2 * d, d, 1)
    k, v = (torch.empty_strided(shape, strides, dtype=cache_dtype or dtype, device=device) for _ in range(2))
    return q, k, v


@pytest.fixture
def as_on_hopper(monkeypatch):
    """Fake tensors on a GPU that this machine need not have."""
    monkeypatch.setattr(_gluon, "INTERPRETED", False)
    monkeypatch.setattr(_gluon, "is_hopper", lambda index: index == 0)
    with FakeTensorMode():
        yield


@with_gluon
def test_what_is_supported(as_on_hopper, monkeypatch):
    assert hopper_takes_prefill(*hopper_case(), None)
    assert hopper_takes_prefill(*hopper_case(torch.float16, d=64, block_size=256), None)
    assert not hopper_takes_prefill(*hopper_case(), 512)
    assert not hopper_takes_prefill(*hopper_case(torch.float32), None)
    assert not hopper_takes_prefill(*hopper_case(cache_dtype=torch.float16), None)
    assert not hopper_takes_prefill(*hopper_case(d=96), None)
    assert not hopper_takes_prefill(*hopper_case(block_size=32), None)
    assert not hopper_takes_prefill(*hopper_case(device="cuda:1"), None)
    assert not hopper_takes_prefill(*hopper_case(device="cpu"), None)
    assert not hopper_takes_prefill(*hopper_case(pad=4), None)
    assert not hopper_takes_prefill(*hopper_case(page_stride=2), None)
    monkeypatch.setattr(_gluon, "INTERPRETED", True)
    assert not hopper_takes_prefill(*hopper_case(), None)


@with_gluon
def test_dispatch(as_on_hopper, monkeypatch):
    for name in ("triton", "sm90", "reference"):
        monkeypatch.setattr(
            prefill_attention, f"varlen_prefill_attention_{name}", lambda *args, name=name: (name, len(args))
        )

    def chosen(max_query, window=None, **options):
        q, k, v = hopper_case(**options)
        return varlen_prefill_attention(q, k, v, q, q, q, max_query, 1.0, window)

    assert chosen(MIN_HOPPER_QUERIES) == chosen(8192) == ("sm90", 9)
    assert chosen(MIN_HOPPER_QUERIES - 1) == chosen(8192, 512) == chosen(8192, d=96) == ("triton", 9)
    assert chosen(8192, device="cpu") == ("reference", 9)


def on_hopper(test):
    """Mark a test of the kernel itself."""
    there = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    return pytest.mark.gpu(pytest.mark.skipif(not there, reason="needs a Hopper GPU")(with_gluon(test)))


def launch(query_lens, lens, heads, block_size=64, dtype=torch.bfloat16):
    """Arguments, with a strided q; keys that must not be read are NaN."""
    n, m, d = heads
    k, v, tables, context_lens = pages(lens, m, d, block_size, dtype)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32, device=DEVICE)
    q = randn(sum(query_lens), (n + 2 * m) * d, dtype=dtype, seed=3)[:, : n * d].unflatten(1, (n, d))
    return q, k, v, tables, context_lens, cu_seqlens, max(query_lens), d**-0.5


def oracle_of(args):
    return varlen_prefill_attention_reference(*(x.double() for x in args[:3]), *args[3:])


@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_matches_float64(group, d, block_size, dtype, monkeypatch):
    lens = [query_len + earlier for query_len, earlier in zip(RAGGED, EARLIER, strict=True)]
    args = launch(RAGGED, lens, (4, 4 // group, d), block_size, dtype)
    guarded = guard_outputs(monkeypatch)
    o = varlen_prefill_attention_sm90(*args)
    guarded.check()
    oracle = oracle_of(args)
    assert relative_error(o, oracle) < attention_tolerance(dtype)
    assert relative_error(o, oracle) < 1.05 * relative_error(varlen_prefill_attention_triton(*args), oracle)


@on_hopper
def test_each_number_of_tiles():
    """1 to 9 tiles of 128 keys: each phase of the rings' barriers."""
    lens = [tiles * 128 - tail for tiles in range(1, 10) for tail in (0, 63, 64, 127)]
    args = launch([min(length, 128) for length in lens], lens, (8, 4, 128))
    assert relative_error(varlen_prefill_attention_sm90(*args), oracle_of(args)) < attention_tolerance(torch.bfloat16)


@on_hopper
def test_chunks_of_a_prompt_are_the_prompt():
    """2,500 tokens at once or in three chunks: the keys are the same, so is each row's result."""
    lens, heads = 2500, (8, 4, 128)
    q, k, v, tables, _, _, _, scale = args = launch([lens], [lens], heads)
    whole = varlen_prefill_attention(*args)
    assert relative_error(whole, oracle_of(args)) < attention_tolerance(torch.bfloat16)
    for start, end in ((0, 1024), (1024, 2400), (2400, lens)):
        ints = [torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([end], [0, end - start])]
        o = varlen_prefill_attention(q[start:end], k, v, tables, *ints, end - start, scale)
        assert relative_error(o, whole[start:end]) < attention_tolerance(torch.bfloat16)


@on_hopper
@pytest.mark.parametrize(("tokens", "runs"), [(512, False), (1024, True), (1500, True)])
def test_the_public_function_runs_it_for_long_chunks(tokens, runs, monkeypatch):
    launched = []

    def spy(*args):
        launched.append(args)
        return varlen_prefill_attention_sm90(*args)

    monkeypatch.setattr(prefill_attention, "varlen_prefill_attention_sm90", spy)
    args = launch([tokens, 30], [tokens, 300], (16, 8, 128))
    assert relative_error(varlen_prefill_attention(*args), oracle_of(args)) < attention_tolerance(torch.bfloat16)
    assert bool(launched) == runs


@on_hopper
def test_a_graph_follows_the_lengths():
    """Captured for the longest chunk, replayed for shorter ones."""
    q, k, v, tables, lens, cu_seqlens, longest, scale = launch([1024, 1024], [1024, 1024], (4, 2, 128))
    args = (q, k, v, tables, lens, cu_seqlens, longest, scale)
    varlen_prefill_attention(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = varlen_prefill_attention(*args)
    for query_lens in ([1024, 1024], [300, 700], [1, 0]):
        lens.copy_(torch.tensor([max(1, length) + 24 for length in query_lens]).clamp(max=1024))
        cu_seqlens.copy_(torch.tensor([0, *itertools.accumulate(query_lens)]))
        graph.replay()
        rows = sum(query_lens)
        expected = oracle_of((q[:rows], *args[1:]))
        assert relative_error(o[:rows], expected) < attention_tolerance(torch.bfloat16)


@on_hopper
def test_where_a_mixed_step_s_chunks_begin_compiles_nothing():
    q, k, v, tables, lens, _, _, scale = launch([1024] * 5, [1024] * 5, (4, 2, 128))
    watch_triton()
    counts = []
    for first in range(5):
        cu_seqlens = torch.tensor([0, *(1024 * (i + 1) for i in range(5 - first))], dtype=torch.int32, device=DEVICE)
        varlen_prefill_attention_sm90(q[1024 * first :], k, v, tables[first:], lens[first:], cu_seqlens, 1024, scale)
        counts.append(Compilations.now().triton)
    assert len(set(counts)) == 1


@on_hopper
def test_queries_that_are_not_among_their_keys_do_not_wait_for_them():
    args = launch([200, 300], [200, 300], (4, 2, 128))
    oracle = oracle_of(args)
    args[4][0] = 50
    o = varlen_prefill_attention_sm90(*args)
    assert relative_error(o[200:], oracle[200:]) < attention_tolerance(torch.bfloat16)


@on_hopper
def test_is_deterministic():
    args = launch([513, 200, 65], [1024, 200, 100], (16, 8, 128))
    assert_deterministic(lambda: varlen_prefill_attention_sm90(*args))


@on_hopper
def test_no_rows():
    q, k, v, tables, lens, _, _, scale = launch([1], [1], (2, 1, 128))
    none = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    assert varlen_prefill_attention_sm90(q[:0], k, v, tables[:0], lens[:0], none, 0, scale).shape == (0, 2, 128)
