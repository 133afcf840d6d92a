"""The PyTorch profiler's Chrome trace gives the ledger that an nsys export of the same work gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import plain
from experiments.errors import UserError
from experiments.trace.attribution import attribute
from experiments.trace.kineto import outermost, read_chrome_trace, short_name
from experiments.trace.ledger import Ledger
from experiments.trace.summarise import make_ledger

# Microseconds since the epoch, as some versions write them: too many digits for a float.
EPOCH_US = 1763971200000000


def event(category: str, name: str, start_ns: int, end_ns: int, tid: Any = 11, **arguments: Any) -> str:
    """One event; its times are decimal microseconds."""
    fields = {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": tid, "args": arguments}
    text = json.dumps(fields)
    start_us, duration_us = f"{EPOCH_US + start_ns // 1000}.{start_ns % 1000:03}", (end_ns - start_ns) / 1000
    return f'{text[:-1]}, "ts": {start_us}, "dur": {duration_us}}}'


def write(path: Path, *events: str) -> Path:
    path.write_text('{"schemaVersion": 1, "traceEvents": [' + ", ".join(events) + "]}")
    return path


def ledger_of(path: Path) -> Ledger:
    trace = read_chrome_trace(path, "2.13")
    return make_ledger(trace, attribute(trace), "torch")


def gpu_events() -> list[str]:
    kernel = {"device": 0, "stream": 7, "grid": [4, 16, 1], "block": [384, 1, 1], "registers per thread": 168}
    return [
        event("user_annotation", "step/0", 0, 900),
        event("user_annotation", "phase/forward", 10, 800),
        event("user_annotation", "layer/0", 20, 400),
        event("user_annotation", "op/linear", 30, 300),
        event("gpu_user_annotation", "op/linear", 1001, 1502, tid=7),
        event("cuda_runtime", "cudaLaunchKernel", 40, 60, correlation=5),
        event("kernel", "void cutlass::Kernel<128, T<int> >(P)", 1001, 1502, 7, correlation=5, **kernel),
        event("cuda_driver", "cuLaunchKernelEx", 100, 120, correlation=6),
        event("kernel", "norm_gemm", 1502, 1603, 7, correlation=6, **{**kernel, "shared memory": 99}),
        event("cuda_runtime", "cudaMemcpyAsync", 500, 520, correlation=8),
        event(
            "gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1700, 1701, 7, correlation=8, device=0, stream=7, bytes=8
        ),
        event("cpu_op", "aten::linear", 35, 200),
    ]


def test_kernels_belong_to_the_ranges_around_their_launch(tmp_path: Path) -> None:
    ledger = ledger_of(write(tmp_path / "t.json", *gpu_events()))
    rows = [(row.name, row.kind, row.phase, row.layer, row.op, row.total_us) for row in ledger.kernels]
    assert rows == [
        ("Kernel", "kernel", "forward", "0", "linear", 0.501),
        ("norm_gemm", "kernel", "forward", "0", "linear", 0.101),
        ("[memcpy DtoH]", "memcpy", "forward", None, None, 0.001),
    ]
    assert ledger.kernels[0].signature == "void cutlass::Kernel<128, T<int> >(P)"
    assert (ledger.kernels[1].grid, ledger.kernels[1].registers, ledger.kernels[1].shared_bytes) == (
        [4, 16, 1],
        168,
        99,
    )
    assert (ledger.steps, ledger.kernels_per_step, ledger.launches_per_step, ledger.coverage) == (1, 2.0, 3.0, 1.0)
    assert ledger.window_ms == pytest.approx(700e-6)


def test_both_lenses_see_the_same(tmp_path: Path, synthetic: Any) -> None:
    export = synthetic()
    export.range("step/0", 0, 900)
    export.range("phase/forward", 10, 800)
    export.range("layer/0", 20, 400)
    export.range("op/linear", 30, 300)
    shape = {"gridX": 4, "gridY": 16, "gridZ": 1, "blockX": 384, "blockY": 1, "blockZ": 1, "registersPerThread": 168}
    for correlation, name, start, end in ((5, "Kernel", 1001, 1502), (6, "norm_gemm", 1502, 1603)):
        export.call(correlation, 40 + correlation, 60 + correlation)
        export.kernel(name, correlation, start, end, streamId=7, dynamicSharedMemory=99 * (name != "Kernel"), **shape)
    export.call(8, 500, 520)
    export.work("CUPTI_ACTIVITY_KIND_MEMCPY", 8, 1700, 1701, streamId=7, copyKind=2)
    trace = export.read()
    nsys = make_ledger(trace, attribute(trace), "nsys")
    torch = ledger_of(write(tmp_path / "t.json", *gpu_events()))

    def unnamed(ledger: Ledger) -> Any:
        same = replace(ledger, profiler="", profiler_version="", export_schema="")
        return plain.encode(replace(same, kernels=[replace(row, signature="") for row in ledger.kernels]))

    assert unnamed(torch) == unnamed(nsys)


def test_on_a_cpu_the_outermost_operators_take_the_kernels_place(tmp_path: Path) -> None:
    events = [
        event("user_annotation", "step/3", 0, 5000),
        event("user_annotation", "phase/forward", 0, 5000),
        event("user_annotation", "op/linear", 0, 2000),
        event("cpu_op", "aten::linear", 100, 900),
        event("cpu_op", "aten::addmm", 200, 800),
        event("cpu_op", "aten::mul", 900, 1000),
        event("cpu_op", "aten::copy_", 3000, 3500),
    ]
    ledger = ledger_of(write(tmp_path / "t.json", *events))
    rows = [(row.name, row.kind, row.op, row.total_us, row.covered) for row in ledger.kernels]
    assert rows == [
        ("aten::linear", "cpu_op", "linear", 0.8, True),
        ("aten::copy_", "cpu_op", None, 0.5, False),
        ("aten::mul", "cpu_op", "linear", 0.1, True),
    ]
    assert (ledger.kernels_per_step, ledger.busy_ms) == (3.0, pytest.approx(1400e-6))


def test_outermost_is_per_thread() -> None:
    def plain_event(start: int, duration: int, tid: int) -> dict[str, int]:
        return {"ts": start, "dur": duration, "pid": 1, "tid": tid}

    events = [plain_event(0, 10, 1), plain_event(2, 3, 1), plain_event(2, 3, 2), plain_event(10, 1, 1)]
    assert [(e["ts"], e["tid"]) for e in outermost(events)] == [(0, 1), (2, 2), (10, 1)]


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("norm_gemm", "norm_gemm"),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT"),
        ("void at::native::elementwise_kernel<128, 4, f(int)::{lambda(int)#1}>(int, T3)", "elementwise_kernel"),
        ("void at::native::(anonymous namespace)::layer_norm<c10::BFloat16, float>(int)", "layer_norm"),
        ("std::enable_if<!T, void>::type internal::gemvx::kernel<int>(X)", "kernel"),
    ],
)
def test_short_names(signature: str, name: str) -> None:
    assert short_name(signature) == name


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": [{"ph": "X"', '{"traceEvents": 3}'])
def test_a_file_that_is_no_trace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no Chrome trace of the PyTorch profiler, or a truncated one"):
        read_chrome_trace(path)
    with pytest.raises(UserError, match="No such file"):
        read_chrome_trace(tmp_path / "absent.json")
