"""A worker without an engine: speaks the protocol, invents samples, and misbehaves where its rules say so.

    python fake_worker.py RULES

RULES is a JSON file: a list of {"do": ..., "on": "load" | "verify" | "ceilings" | "measure"} with what must match:
"variant", "batch", "length", "round"; "times" limits how often a rule applies over all processes. RULES.log gets a line
for every measurement: variant, cell, start and end.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.messages import (
    Answer,
    Exit,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Progress,
    Rates,
    Ready,
    Verified,
    worker_channel,
)
from experiments.records import Cell, CellResult, Status, Verdict

CHANNEL = worker_channel() if __name__ == "__main__" else None
STEP_MS = {"baseline": 2.0, "folded": 1.6}
GOOD = Verdict(True, "", 8, 1.0, 1e-6, 1e-5, 3)


class FakeWorker:
    """Answers as its rules say."""

    def __init__(self, rules: Path) -> None:
        self.rules_file = rules
        self.rules: list[dict[str, Any]] = json.loads(rules.read_text())
        self.variant = ""

    def answer(self, request: object) -> Answer:
        """The answer to one request, unless a rule has other plans."""
        if isinstance(request, Load):
            self.variant = request.variant.name
            return self.obey("load", {}) or Ready(
                "fake", "0123", "twin", ("linear",) if "base" not in self.variant else ()
            )
        if isinstance(request, Measure):
            return self.measure(request.cell)
        if isinstance(request, MeasureCeilings):
            return self.obey("ceilings", {}) or Rates({"read_bytes_per_s": 1e12, "bf16_flop_per_s": 1e14})
        return self.obey("verify", {}) or Verified(GOOD)

    def measure(self, cell: Cell) -> Answer:
        """Invented samples, different in every round."""
        start = time.monotonic()
        point = cell.point
        told = self.obey("measure", {"batch": point.batch, "length": point.length, "round": cell.round, "cell": cell})
        if told is None:
            time.sleep(float(os.environ.get("FAKE_CELL_S", "0")))
            step_ms = STEP_MS.get(self.variant, 1.5) * (1 + 0.01 * cell.round)
            metric = {"prefill": "ttft_ms", "decode": "step_ms"}.get(point.workload, "output_tokens_per_s")
            told = Measured(CellResult(cell, Status.OK, kernels="twin", samples={metric: [step_ms, step_ms * 1.01]}))
        with Path(f"{self.rules_file}.log").open("a") as log:
            log.write(f"{self.variant} {cell.id} {start} {time.monotonic()}\n")
        return told

    def obey(self, on: str, facts: dict[str, Any]) -> Answer | None:
        """Do what the first matching rule says."""
        known = facts | {"on": on, "variant": self.variant}
        for index, rule in enumerate(self.rules):
            conditions = {key: value for key, value in rule.items() if key not in ("do", "times")}
            if all(known.get(key) == value for key, value in conditions.items()) and self._may(index, rule):
                return self._do(rule["do"], facts.get("cell"))
        return None

    def _may(self, index: int, rule: dict[str, Any]) -> bool:
        """Count an application in a file, since the next one may be another process."""
        counter = Path(f"{self.rules_file}.{index}")
        used = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(used + 1))
        return used < rule.get("times", math.inf)

    def _do(self, what: str, cell: Cell | None) -> Answer | None:
        match what:
            case "exit":
                print("Traceback (most recent call last):\nRuntimeError: the fake worker gives up", file=sys.stderr)
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill_harness":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            case "preempt":
                # What Slurm sends before it takes a node away, or when the time is nearly up.
                os.kill(os.getppid(), signal.SIGUSR2)
                time.sleep(60)
            case "requeue":
                # Slurm ends this job, and starts it again.
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
                time.sleep(60)
            case "orphan":
                # A child that inherits the pipe and outlives its parent.
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "junk":
                print("a library says hello on stdout")
                subprocess.run(["echo", "so does its child"], check=True)
                assert CHANNEL is not None
                CHANNEL.answers.write(b'not json\n{"message": "unknown"}\n\xff\xfe\n')
                CHANNEL.send(Progress("still here"))
            case "oom" | "error" | "user" | "skipped":
                return Failed(what, f"as the rules say: {what}")
            case "wrong":
                return Verified(Verdict(False, "tokens differ at position 3", 8, 0.5, math.nan, math.inf, 3))
            case "nan" if cell:
                return Measured(CellResult(cell, Status.OK, samples={"step_ms": [1.0, math.nan]}))
            case "empty" if cell:
                return Measured(CellResult(cell, Status.OK))
            case "other" if cell:
                return Measured(
                    CellResult(Cell(cell.point, "other", cell.round), Status.OK, samples={"step_ms": [1.0]})
                )
        return None


def main() -> int:
    """Serve until told to exit, or until the harness is gone."""
    assert CHANNEL is not None
    worker = FakeWorker(Path(sys.argv[1]))
    while (request := CHANNEL.receive()) is not None and not isinstance(request, Exit):
        CHANNEL.send(worker.answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
