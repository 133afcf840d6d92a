"""Runs in a store with times that are made up: known speeds, seeded noise."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from experiments.compose import compose
from experiments.environment import Code, Environment, Gpu
from experiments.manifest import Manifest, new_manifest
from experiments.models import find_model
from experiments.plan import make_plan
from experiments.records import CellResult, Status, Verdict
from experiments.store import create_run

H200 = Gpu("NVIDIA H200", "570.1", 141 << 30, 1)
MACHINE = Environment("3.12.1", "Linux x86_64", "A CPU", 2, H200, {"torch": "2.13.0", "triton": "3.6.0"})
RIGHT = Verdict(True, "", 8, 1.0, 1e-6, 1e-5, 3)
OVERRIDES = ("workloads=[decode]", "batches=[1,8]", "lengths=128", "protocol.rounds=5")


# Composing takes most of the time of making a run.
_composed = cache(lambda *asked: compose(asked))


@dataclass(frozen=True)
class Made:
    """What to make up: step times are 1 ms x `times[variant]`, with noise; `mend` changes or drops (None) a cell."""

    times: Mapping[str, float] = field(default_factory=lambda: {"baseline": 1.0, "fused": 0.5})
    noise: float = 0.002
    commit: str = "aaaaaaa0000"
    machine: Environment = MACHINE
    overrides: tuple[str, ...] = ()
    kernels: str = "compiled"
    weights_hash: str = "w1"
    seed: int = 0
    mend: Callable[[CellResult], CellResult | None] = lambda result: result

    def manifest(self) -> Manifest:
        """Its manifest."""
        asked = ["experiment=quick", f"variants=[{','.join(self.times)}]", *OVERRIDES, *self.overrides]
        gpu = self.machine.gpu is not None
        config = replace(_composed(*asked), device="cuda" if gpu else "cpu", dtype="bfloat16" if gpu else "float32")
        models = [find_model(source) for source in config.models]
        plan = make_plan(config, [model.name for model in models])
        made = new_manifest(config, models, plan, self.machine, Code(self.commit, False, self.commit))
        return replace(made, weights_hash={model.name: self.weights_hash for model in models})

    def store(self, results_dir: Path) -> Path:
        """The folder of the run."""
        draw = random.Random(self.seed)
        with create_run(results_dir, self.manifest()) as store:
            for cell in sorted(store.manifest.plan.cells()):
                step_ms = self.times[cell.variant] * math.exp(draw.gauss(0, self.noise))
                result = CellResult(cell, Status.OK, "", self.kernels, {"step_ms": [step_ms]}, verdict=RIGHT)
                if (mended := self.mend(result)) is not None:
                    store.write_cell(mended)
        return store.path
