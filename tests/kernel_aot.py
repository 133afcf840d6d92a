"""Ahead-of-time compilation of kernels for sm_90, on machines without a GPU: of what their launchers launch.

As a script (run without TRITON_INTERPRET): cases, pickled, on stdin, their resources as JSON on stdout.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# What one program may have on sm_90.
MAX_SHARED_BYTES = 227 * 1024
# What every kernel took when `python -m tests.record_resources` was last run.
RECORD = Path(__file__).parents[1] / "docs/data/resources.json"


@dataclass(frozen=True)
class AotCase:
    """The kernel of that name among those that `launch` launches, a picklable call with tensors on the CPU.

    What it computes is thrown away: whatever the launcher passes is what Triton specialises and compiles.
    """

    name: str
    kernel: str
    launch: Callable[[], object]


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """An argument of a launch that is only compiled: nobody reads its elements."""
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Resources:
    """What a compiled program takes."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    ptx: str


def compile_cases(cases: list[AotCase]) -> dict[str, Resources]:
    """Compile all cases in one process that has Triton's compiler and not its interpreter."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel_aot"],
        input=pickle.dumps(cases), capture_output=True, env=env, cwd=root, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"ahead-of-time compilation failed:\n{done.stderr.decode()[-4000:]}")
    return {row["name"]: Resources(**row) for row in json.loads(done.stdout)}


def assert_fits(resources: Resources, spilled_bytes: int = 0) -> None:
    """No spill beyond what is known, and shared memory within the limit; pytest -rP shows the figures."""
    print(f"{resources.name}: {resources.registers} registers, {resources.shared_bytes} bytes of shared memory")
    assert resources.stack_bytes <= spilled_bytes, f"{resources.name} spills {resources.stack_bytes} bytes a thread"
    assert resources.shared_bytes <= MAX_SHARED_BYTES


def figures(resources: Resources) -> dict[str, object]:
    """What is kept of one compiled kernel: all but its code."""
    return {
        "name": resources.name,
        "registers": resources.registers,
        "stack_bytes": resources.stack_bytes,
        "shared_bytes": resources.shared_bytes,
    }


def assert_recorded(compiled: dict[str, Resources]) -> None:
    """The record holds what this compiler makes of these kernels; another Triton may make something else."""
    record = json.loads(RECORD.read_text())
    if record["triton"] == version("triton"):
        kept = {row["name"]: row for group in ("baseline", "fused") for row in record[group]}
        fresh = [figures(resources) for resources in compiled.values()]
        assert [kept.get(row["name"]) for row in fresh] == fresh, "stale: run python -m tests.record_resources"


def assemble(resources: Resources, folder: Path) -> Path:
    """The machine code of a kernel whose products are in flight.

    ptxas gives up on that (C7510 and its kin) without an error.
    """
    triton = pytest.importorskip("triton")
    (folder / "kernel.ptx").write_text(resources.ptx)
    command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    log = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stderr
    assert "Potential Performance Loss" not in log
    assert "setmaxnreg ignored" not in log
    return folder / "kernel.cubin"


class _Hopper:
    """In the place of Triton's driver: what it is compiled for. Nothing is loaded or launched."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile(cases: list[AotCase]) -> list[Resources]:
    import triton

    launched: dict[str, Any] = {}
    run = triton.JITFunction.run

    def compile_only(kernel: Any, *args: Any, **options: Any) -> None:
        launched[kernel.fn.__name__] = run(kernel, *args, **options | {"warmup": True})

    triton.JITFunction.run = compile_only
    triton.runtime.driver.set_active(_Hopper())
    found = []
    for case in cases:
        launched.clear()
        case.launch()
        found.append(_resources(case.name, launched[case.kernel]))
    return found


def _resources(name: str, compiled: Any) -> Resources:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    stack = figures["STACK"] + figures["LOCAL"]
    return Resources(name, figures["REG"], stack, compiled.metadata.shared, compiled.asm["ptx"])


if __name__ == "__main__":
    json.dump([asdict(row) for row in _compile(pickle.load(sys.stdin.buffer))], sys.stdout)
