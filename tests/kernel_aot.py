"""Ahead-of-time compilation of kernels for sm_90, on machines without a GPU.

As a script (run without TRITON_INTERPRET): cases as JSON on stdin, their resources as JSON on stdout.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

# What one program may have on sm_90.
MAX_SHARED_BYTES = 227 * 1024
# What every kernel took when `python -m tests.record_resources` was last run.
RECORD = Path(__file__).parents[1] / "docs/data/resources.json"


@dataclass(frozen=True)
class AotCase:
    """A kernel, the types of its run-time arguments and the values of its compile-time ones.

    A type is Triton's, with ":16" where the value (or address) is a multiple of 16: "*bf16:16", "i32:16".
    """

    name: str
    kernel: str
    types: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int = 4
    options: dict[str, object] = field(default_factory=dict)


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
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True, text=True, env=env, cwd=root, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"ahead-of-time compilation failed:\n{done.stderr[-4000:]}")
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


def _compile(case: AotCase) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, kernel_name = case.kernel.split(":")
    kernel = getattr(importlib.import_module(module), kernel_name)
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in case.constexprs:
            signature[name], constexprs[(index,)] = "constexpr", case.constexprs[name]
            continue
        signature[name], _, divisor = case.types[name].partition(":")
        if divisor:
            attributes[(index,)] = [["tt.divisibility", int(divisor)]]
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    options = {"num_warps": case.num_warps, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    stack = figures["STACK"] + figures["LOCAL"]
    return Resources(case.name, figures["REG"], stack, compiled.metadata.shared, compiled.asm["ptx"])


if __name__ == "__main__":
    rows = [asdict(_compile(AotCase(**case))) for case in json.load(sys.stdin)]
    json.dump(rows, sys.stdout)
