"""The Hopper prefill attention: what the compiler makes of it anywhere, and its numbers where there is such a GPU."""

import itertools
import re
import subprocess

import pytest
import torch

from engine.kernels import prefill_attention_sm90
from engine.kernels.prefill_attention import varlen_prefill_attention_reference, varlen_prefill_attention_triton
from engine.kernels.prefill_attention_sm90 import MAX_REGISTERS, supported, varlen_prefill_attention_sm90
from tests.engine.kernels.test_aot import TYPES
from tests.engine.kernels.test_attention import attention_tolerance, pages
from tests.kernel_aot import AotCase, assert_fits, compile_cases
from tests.kernel_gates import DEVICE, assert_deterministic, guard_outputs, randn, relative_error

RAGGED = [1, 63, 64, 65, 127, 128, 129, 200, 513]
EARLIER = [0, 5, 64, 100, 0, 700, 63, 128, 31]


def aot(d: int, stages: int, ping_pong: bool, dtype: str = "bf16", persistent: bool = False) -> AotCase:
    box = f"tensordesc<{dtype}[1, 64, 64],NVMMASharedLayout(128, 16, rank=3)>"
    types = TYPES | {
        **dict.fromkeys(("table_width", "blocks", "batch", "n"), "i32"),
        "k_desc": box,
        "v_desc": box,
        "q_ptr": f"*{dtype}:16",
        "o_ptr": f"*{dtype}:16",
    }
    constexprs = {"D": d, "BLOCK_SIZE": 64, "K_STAGES": stages, "V_STAGES": stages, "PING_PONG": ping_pong}
    kernel = "_persistent_kernel_sm90" if persistent else "_prefill_kernel_sm90"
    name = f"{kernel} d={d} stages={stages} ping_pong={ping_pong} {dtype}"
    kernel = f"engine.kernels.prefill_attention_sm90:{kernel}"
    return AotCase(name, kernel, types, constexprs, 4, {"maxnreg": MAX_REGISTERS})


CASES = [
    aot(128, 2, False), aot(128, 2, True), aot(128, 3, True), aot(64, 2, False), aot(128, 2, False, "fp16"),
    aot(64, 2, True, persistent=True), aot(128, 2, False, persistent=True),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    return compile_cases(CASES)


# The producer of the persistent kernel, with 24 registers, reads a few addresses of a block from the stack.
@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.name)
def test_fits_sm_90(case, compiled):
    assert_fits(compiled[case.name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_products_overlap_the_softmax(case, compiled, tmp_path):
    """ptxas gives up on overlapping (C7510 and its kin) without an error, and may move a softmax behind a wait."""
    triton = pytest.importorskip("triton")
    (tmp_path / "kernel.ptx").write_text(compiled[case.name].ptx)
    command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    log = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stderr
    assert "Potential Performance Loss" not in log
    assert "setmaxnreg ignored" not in log
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", "kernel.cubin"]
    sass = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    # Two warpgroups, each with a masked and an unmasked loop; the exponentials lie between its two waits.
    loops = re.findall(r"DEPBAR\.LE gsb0, 0x1 ;(.*?)DEPBAR\.LE gsb0, 0x0 ;", sass, re.DOTALL)
    assert len(loops) == 4
    assert all(loop.count("MUFU.EX2") >= 64 for loop in loops)
    assert not any(re.search(r"\b(LDL|STL|HGMMA)\b", loop) for loop in loops)


def test_other_cases_are_left_to_the_other_kernel():
    q, cache = torch.empty(4, 2, 128, dtype=torch.bfloat16), torch.empty(1, 64, 1, 128, dtype=torch.bfloat16)
    assert not supported(q, cache, cache, 4, None)


hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)


def launch(query_lens, lens, heads, block_size, dtype, **options):
    """(arguments, launcher of this kernel): a strided q, and keys that must not be read NaN."""
    n, m, d = heads
    k, v, tables, context_lens = pages(lens, m, d, block_size, dtype)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32, device=DEVICE)
    q = randn(sum(query_lens), (n + 2 * m) * d, dtype=dtype, seed=3)[:, : n * d].unflatten(1, (n, d))
    args = (q, k, v, tables, context_lens, cu_seqlens, max(query_lens), d**-0.5)
    return args, lambda: varlen_prefill_attention_sm90(*args, **options)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("heads", [(2, 2, 128), (4, 2, 128), (4, 1, 128), (6, 2, 64)])
def test_matches_float64(heads, block_size, dtype, monkeypatch):
    lens = [query_len + earlier for query_len, earlier in zip(RAGGED, EARLIER, strict=True)]
    args, run = launch(RAGGED, lens, heads, block_size, dtype)
    oracle = varlen_prefill_attention_reference(*(x.double() for x in args[:3]), *args[3:])
    guarded = guard_outputs(monkeypatch)
    o = run()
    guarded.check()
    assert relative_error(o, oracle) < attention_tolerance(dtype)
    assert relative_error(o, oracle) < 1.05 * relative_error(varlen_prefill_attention_triton(*args), oracle)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize(
    "options", [{}, {"ping_pong": True}, {"k_stages": 3, "v_stages": 3}, {"persistent": True}], ids=str
)
def test_each_number_of_tiles(options):
    """1 to 9 tiles of 128 keys: each phase of the rings' barriers; enough blocks for several turns of a program."""
    lens = [tiles * 128 - tail for tiles in range(1, 10) for tail in (0, 63, 64, 127)]
    query_lens = [min(length, 128) for length in lens]
    args, run = launch(query_lens, lens, (8, 4, 128), 64, torch.bfloat16, **options)
    oracle = varlen_prefill_attention_reference(*(x.double() for x in args[:3]), *args[3:])
    assert relative_error(run(), oracle) < attention_tolerance(torch.bfloat16)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("options", [{}, {"ping_pong": True}, {"persistent": True}], ids=str)
def test_is_deterministic(options):
    _, run = launch([513, 200, 65], [1024, 200, 100], (16, 8, 128), 64, torch.bfloat16, **options)
    assert_deterministic(run)


@pytest.mark.gpu
@hopper
def test_no_rows():
    (q, k, v, tables, lens, _, _, scale), _ = launch([1], [1], (2, 1, 128), 64, torch.bfloat16)
    none = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    assert prefill_attention_sm90.varlen_prefill_attention_sm90(
        q[:0], k, v, tables[:0], lens[:0], none, 0, scale
    ).shape == (0, 2, 128)
