"""Synthetic runs: manifests and cells with known speeds, noise and failures, all from one seed."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.config import ExperimentConfig, ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.environment import Code, Environment, Gpu
from experiments.floors import Ceilings, floor_of
from experiments.manifest import Manifest, new_manifest
from experiments.models import Model
from experiments.plan import make_plan
from experiments.records import Cell, CellResult, Point, Status, Verdict
from experiments.reporting.ledgers import Traced
from experiments.reporting.run import Run, assemble
from experiments.trace.ledger import SCHEMA, Gaps, KernelRow, Timeline

QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_layers": 28,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "qk_norm": True,
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
SIZES = {"qwen3-0.6b": QWEN3_06B, "smollm2-135m": SMOLLM2}
CPU = Environment("3.12.3", "Linux x86_64", "synthetic cores x 16", 16, None, {"torch": "2.11.0", "triton": "3.6.0"})
H200 = replace(CPU, gpu=Gpu("NVIDIA H200", "570.1", 141 << 30, 1))
CODE = Code("0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", False, "0a1b2c3")
PROTOCOL = ProtocolConfig(
    rounds=5, windows=5, steps_per_window=64, window_ms=1000, warmup_min_steps=8, warmup_max_steps=64,
    verdict_tokens=16, load_timeout_s=600, cell_timeout_s=600,
)  # fmt: skip
CEILINGS = {"read_bytes_per_s": 4.64e12, "bf16_flop_per_s": 7.0e14}
OFFLINE = WorkloadConfig("offline", "offline", [256], [0], input_tokens=[100, 1024], output_tokens=[100, 1024])
SPEED = {"baseline": 1.0, "compiled": 1.12, "folded": 1.002, "norm_linear": 1.21, "fused": 1.85}


@dataclass
class Synthetic:
    """What to make up. `gains` are speed-ups at small batches, `settings` more of a variant's configuration; `mend` may
    change or drop (None) any cell once it is made."""

    models: Sequence[str] = ("qwen3-0.6b", "smollm2-135m")
    workloads: Sequence[str] = ("decode", "prefill")
    batches: Sequence[int] = (1, 8, 64)
    lengths: Sequence[int] = (128, 1024)
    variants: Sequence[str] = ("baseline", "compiled", "norm_linear", "fused")
    rounds: int = 5
    windows: int = 5
    noise: float = 0.004
    kernels: str = "compiled"
    ceilings: bool = True
    seed: int = 0
    gains: Mapping[str, float] = field(default_factory=lambda: SPEED)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mend: Callable[[CellResult], CellResult | None] = field(default=lambda result: result)

    def results(self) -> list[CellResult]:
        """Every cell that was not dropped."""
        draw = random.Random(self.seed)
        made = (self.mend(self._result(cell, draw)) for cell in self.manifest().plan.cells())
        return [result for result in made if result is not None]

    def manifest(self) -> Manifest:
        """The manifest of a run on one H200, or of twins on a CPU."""
        compiled = self.kernels == "compiled"
        config = ExperimentConfig(
            name="synthetic",
            question="How much faster does the whole engine get when RMSNorm moves into the linear after it?",
            models=list(self.models),
            variants=[self._variant(name) for name in self.variants],
            workloads=[self._workload(name) for name in self.workloads],
            protocol=replace(PROTOCOL, rounds=self.rounds, windows=self.windows),
            device="cuda" if compiled else "cpu",
            dtype="bfloat16" if compiled else "float32",
        )
        models = [Model(name, name, sizes=SIZES.get(name, {})) for name in self.models]
        made = new_manifest(config, models, make_plan(config, config.models), H200 if compiled else CPU, CODE)
        ceilings = CEILINGS if self.ceilings else {}
        return replace(made, run_id="20261123T101500Z-0a1b2c3", created="2026-11-23T10:15:00Z", ceilings=ceilings)

    def _variant(self, name: str) -> VariantConfig:
        return VariantConfig(name, **{"kind": "baseline" if name == "control" else name, **self.settings.get(name, {})})

    def _workload(self, name: str) -> WorkloadConfig:
        if name == "offline":
            return OFFLINE
        return WorkloadConfig(name, name, list(self.batches), list(self.lengths))

    def run(self, problems: Iterable[str] = (), ledgers: Sequence[Traced] = ()) -> Run:
        """The run as the report loads it."""
        return assemble(self.manifest(), self.results(), list(problems), ledgers)

    def _result(self, cell: Cell, draw: random.Random) -> CellResult:
        drift = 1 + 0.05 * math.sin(cell.round)
        gain = 1 + (self.gains.get(cell.variant, 1.0) - 1) / (1 + cell.point.batch / 64)
        seconds = _base_ms(cell.point) * drift / gain
        samples = [seconds * math.exp(draw.gauss(0, self.noise)) for _ in range(self.windows)]
        name = {"decode": "step_ms", "prefill": "ttft_ms"}.get(cell.point.workload, "output_tokens_per_s")
        if name == "output_tokens_per_s":
            samples = [1e3 * 133_966 / s for s in samples]
        taken = {name: samples}
        if self.kernels == "compiled" and name != "output_tokens_per_s":
            taken["step_device_ms"] = [0.93 * s for s in samples]
        return CellResult(
            cell,
            Status.OK,
            kernels=self.kernels,
            samples=taken,
            memory_bytes={"allocated": 2_000_000_000 + 4096 * cell.point.batch, "reserved": 2_200_000_000},
            clocks={"sm_mhz": 1980.0, "memory_mhz": 3201.0, "temperature_c": 54.0},
            verdict=Verdict(True, "", 256, 0.996, 2.1e-4, 3.9e-3, 17),
            started="2026-11-23T10:15:00Z",
            duration_s=1.0,
        )


def _base_ms(point: Point) -> float:
    """The baseline: launches, then the floor at a fair share of it."""
    dims = SIZES.get(point.model, SMOLLM2)
    workload = OFFLINE if point.workload == "offline" else WorkloadConfig(point.workload, point.workload)
    floor = floor_of(dims, workload, point, Ceilings(**CEILINGS), 2)
    return 0.6 + 1.9 * (floor.floor_ms if floor else 1.0)


def ledger(variant: str, coverage: float = 0.97) -> Traced:
    """A decode ledger: 28 layers of a few kernels, fewer of them when fused."""
    ops = [("qkv_proj", 3.1), ("attention", 4.0), ("o_proj", 2.2), ("gate_up_proj", 5.1), ("down_proj", 2.6)]
    if variant == "baseline":
        ops += [("rms_norm", 1.7), ("rms_norm", 1.7), ("qk_norm", 1.5), ("rope", 1.4), ("silu_mul", 1.6)]
    kernels = [
        kernel(f"{op}_kernel<{i % 3}>", op, 10, 10 * us, str(layer))
        for layer in range(28)
        for i, (op, us) in enumerate(ops)
    ]
    kernels.append(kernel("argmax_kernel", "sample", 10, 41.0, phase="sample"))
    kernels.append(kernel("memcpy HtoD", None, 20, 22.0, phase=None))
    busy_ms = sum(k.total_us for k in kernels) / 1e3
    return Traced(
        schema=SCHEMA,
        cell=Cell(Point("qwen3-0.6b", "decode", 1, 128), variant, 0),
        profiler="nsys",
        profiler_version="2025.3.1",
        export_schema="3",
        coverage=coverage,
        window_ms=1.2 * busy_ms,
        busy_ms=busy_ms,
        gap_ms=0.2 * busy_ms,
        overlap_ms=0.0,
        outside_ms=0.0,
        devices=1,
        steps=10,
        kernels_per_step=len(kernels),
        launches_per_step=len(kernels),
        traced_step_ms=0.12 * busy_ms,
        untraced_step_ms=0.12 * busy_ms / 1.31,
        inflation=1.31,
        gaps=Gaps(200 * busy_ms, 0.0, 0, 0.0, 0.0),
        kernels=kernels,
        timeline=timeline(_one_after_the_other(kernels)),
    )


def kernel(
    name: str, op: str | None, count: int, total_us: float, layer: str | None = None, phase: str | None = "forward"
) -> KernelRow:
    """A row of a ledger."""
    return KernelRow(name, "kernel", phase, layer, op, count, total_us, [1], [128], 32, 0, op is not None)


Launch = tuple[float, float, str, str, str, str]


def timeline(launches: Iterable[Launch]) -> Timeline:
    """Of (start_us, duration_us, name, layer, op, phase), as a ledger keeps them."""
    rows = list(launches)
    texts = list(dict.fromkeys(["", *(text for row in rows for text in row[2:])]))
    starts, durations = ([round(1e3 * row[i]) for row in rows] for i in (0, 1))
    name, layer, op, phase = ([texts.index(row[i]) for row in rows] for i in range(2, 6))
    return Timeline(texts, starts, durations, [7] * len(rows), name, phase, layer, op)


def _one_after_the_other(kernels: Sequence[KernelRow]) -> Iterator[Launch]:
    """One step, half a microsecond between its kernels."""
    start_us = 0.0
    for k in kernels:
        yield start_us, k.total_us / 10, k.name, k.layer or "", k.op or "", k.phase or ""
        start_us += k.total_us / 10 + 0.5
