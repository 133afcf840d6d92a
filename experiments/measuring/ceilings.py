"""What this GPU can do at most, measured in this run: every time stands beside a floor made of these two rates."""

import itertools
import time
from collections.abc import Callable

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # No Triton, no CUDA: ceilings are not measured there.
    triton = None

READ_BYTES = 2 * 2**30  # Thirty times the H200's L2.
GEMM_SIZE = 8192
REPEATS = 10
# An idle GPU takes as long to raise its clocks.
WARM_UP_S = 0.3

if triton is not None:

    @triton.jit
    def _sum_kernel(x_ptr, out_ptr, num_elements, BLOCK: tl.constexpr):
        """out[p] = the sum of program p's strided share of x, int32."""
        total = tl.zeros((BLOCK,), tl.int32)
        for start in range(tl.program_id(0) * BLOCK, num_elements, tl.num_programs(0) * BLOCK):
            total += tl.load(x_ptr + start + tl.arange(0, BLOCK))
        tl.store(out_ptr + tl.program_id(0), tl.sum(total))


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """`read_bytes_per_s` of a read-only stream over 2 GiB and `bf16_flop_per_s` of an 8192 cube; empty on a CPU."""
    if device.type != "cuda" or triton is None:
        return {}
    return {"read_bytes_per_s": READ_BYTES / _read_s(device), "bf16_flop_per_s": 2 * GEMM_SIZE**3 / _gemm_s(device)}


def _read_s(device: torch.device) -> float:
    x = torch.ones(READ_BYTES // 4, dtype=torch.int32, device=device)
    programs = 8 * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs, dtype=torch.int32, device=device)
    block = 4096
    # x holds a multiple of the block, so that no load needs a mask.
    return _best_s(lambda: _sum_kernel[(programs,)](x, out, x.numel(), BLOCK=block, num_warps=8))


def _gemm_s(device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    out = torch.empty_like(a)
    return _best_s(lambda: torch.mm(a, b, out=out))


def _best_s(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few repeats after a warm-up: a ceiling is what can be reached."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_S:
        run()
        torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return float(min(before.elapsed_time(after) for before, after in itertools.pairwise(events))) / 1e3
