"""The warm workers of one model, one per variant: loaded, verified, asked one at a time, replaced when they break."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.messages import Answer, Failed, Load, Measure, Measured, Ready, Request, Verified, Verify
from experiments.models import Model
from experiments.plan import ModelPlan
from experiments.records import Cell, CellResult, Status, Verdict
from experiments.worker_process import PEER_COMMAND, WORKER_COMMAND, WorkerLost, WorkerProcess, without_paths

MOST_LOST_LOADS = 2

OnReady = Callable[[str, str, Ready], None]
"""Called with (model, variant, what its worker said) whenever a worker has loaded."""


@dataclass(frozen=True)
class Unfit:
    """Why a variant cannot be measured, and what becomes of its cells."""

    status: Status
    reason: str
    verdict: Verdict | None = None


class CannotMeasure(Exception):
    """There is no worker to measure with, now or ever."""

    def __init__(self, unfit: Unfit) -> None:
        super().__init__(unfit.reason)
        self.unfit = unfit


class Pool:
    """Workers of one model. Close it, or leave a `with` block, before the next model's."""

    def __init__(
        self,
        config: ExperimentConfig,
        model: Model,
        plan: ModelPlan,
        logs: Path,
        verdicts: dict[str, Verdict],
        on_ready: OnReady,
        say: Callable[[str], None],
        command: Sequence[str] | None = None,
    ) -> None:
        """`verdicts` are those already earned on this model, by variant; new ones are added.

        `command` starts the worker of any variant; without one it is that of the variant's kind.
        """
        self._config, self._model, self._plan = config, model, plan
        self._logs, self._verdicts, self._on_ready, self._say, self._command = logs, verdicts, on_ready, say, command
        self._variants = {variant.name: variant for variant in config.variants}
        self._workers: dict[str, WorkerProcess] = {}
        self._started: dict[str, WorkerProcess] = {}
        self._kernels: dict[str, str] = {}
        self._gpu_pids: dict[str, tuple[int, ...]] = {}
        self._unfit: dict[str, Unfit] = {}
        self._lost_loads: Counter[str] = Counter()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers.values():
            worker.close() if kind is None else worker.kill()
        self._workers.clear()
        while self._started:
            self._started.popitem()[1].kill()

    def warm_up(self, variants: Sequence[str]) -> None:
        """Load and verify the workers of these variants, so that every cell finds all of them in place."""
        if self._plan.by_process:
            return
        # Side by side, before anything is measured: each imports for seconds without a GPU.
        for variant in variants:
            if variant not in self._workers and variant not in self._unfit:
                self._started[variant] = self._start(variant)
        for variant in variants:
            try:
                self._worker(variant)
            except CannotMeasure as error:
                self._say(f"{self._model.name}, {variant}: {error}")

    def renew(self) -> None:
        """End every worker; the next cells find fresh ones, whose verdicts are known already."""
        while self._workers:
            self._workers.popitem()[1].close()

    def is_unfit(self, variant: str) -> bool:
        """Whether the variant cannot be measured at all, so that each of its cells fails at once."""
        return variant in self._unfit

    def measure(self, cell: Cell) -> CellResult:
        """Measure one cell; whatever goes wrong is its result. UserError for input that no cell can be made of."""
        try:
            worker = self._worker(cell.variant)
            answer = self._ask(cell.variant, worker, Measure(cell, self._ours()), self._config.protocol.cell_timeout_s)
        except CannotMeasure as error:
            return self._failed(cell, error.unfit)
        if not isinstance(answer, Measured):
            self._drop(cell.variant)
            status = Status.OOM if isinstance(answer, Failed) and answer.kind == "oom" else Status.ERROR
            return self._failed(cell, Unfit(status, answer.reason if isinstance(answer, Failed) else "a wrong answer"))
        result = _checked(cell, answer.result, self._verdicts.get(cell.variant))
        if result.status in (Status.OOM, Status.ERROR):
            # What ran out of memory or crashed a kernel may leave a process that measures wrongly.
            self._drop(cell.variant)
        return result

    def _ours(self) -> tuple[int, ...]:
        return tuple(pid for pids in self._gpu_pids.values() for pid in pids)

    def _worker(self, variant: str) -> WorkerProcess:
        """The variant's worker, loaded and found right; CannotMeasure where there is none."""
        if variant in self._unfit:
            raise CannotMeasure(self._unfit[variant])
        if known := self._verdicts.get(variant):
            self._insist_on(variant, known)
        if variant not in self._workers:
            if self._plan.by_process:
                for other in list(self._workers):
                    self._workers.pop(other).close()
            self._load(variant)
        return self._workers[variant]

    def _start(self, variant: str) -> WorkerProcess:
        command = self._command or (PEER_COMMAND if self._variants[variant].is_peer else WORKER_COMMAND)
        return WorkerProcess(self._logs / f"{self._model.name}.{variant}.log", command)

    def _load(self, variant: str) -> None:
        self._say(f"loading {self._model.name}, {variant}")
        worker = self._started.pop(variant, None) or self._start(variant)
        self._workers[variant] = worker
        config, timeout_s = self._config, self._config.protocol.load_timeout_s
        request = Load(
            model=self._model.source,
            variant=self._variants[variant],
            device=config.device,
            dtype=config.dtype,
            weights=config.weights,
            seed=config.seed,
            points=self._plan.points,
            workloads=tuple(config.workloads),
            protocol=config.protocol,
        )
        try:
            ready = self._ask(variant, worker, request, timeout_s)
            if not isinstance(ready, Ready):
                raise self._give_up(variant, ready, "could not load", Status.ERROR)
            self._kernels[variant] = ready.kernels
            self._gpu_pids[variant] = ready.gpu_pids
            self._on_ready(self._model.name, variant, ready)
            if variant not in self._verdicts:
                self._say(f"checking the answers of {self._model.name}, {variant}")
                verified = self._ask(variant, worker, Verify(), timeout_s)
                if not isinstance(verified, Verified):
                    raise self._give_up(variant, verified, "no verdict", Status.INVALID)
                self._verdicts[variant] = verified.verdict
        except CannotMeasure as error:
            self._lost_loads[variant] += 1
            if self._lost_loads[variant] >= MOST_LOST_LOADS:
                self._unfit.setdefault(variant, error.unfit)
            raise
        self._insist_on(variant, self._verdicts[variant])

    def _ask(self, variant: str, worker: WorkerProcess, request: Request, timeout_s: float) -> Answer:
        try:
            return worker.ask(request, timeout_s, self._say)
        except WorkerLost as lost:
            self._drop(variant)
            raise CannotMeasure(Unfit(lost.status, lost.reason)) from lost

    def _give_up(self, variant: str, answer: Answer, what: str, status: Status) -> CannotMeasure:
        """A load or a verdict that would fail again: nothing of this variant is tried any more."""
        self._drop(variant)
        if not isinstance(answer, Failed):
            answer = Failed("error", f"the worker answered {type(answer).__name__}")
        if answer.kind == "user":
            raise UserError(f"{self._model.name}, {variant}: {answer.reason}")
        if answer.kind == "oom" and status is Status.ERROR:
            status = Status.OOM
        if answer.kind == "skipped":
            status, what = Status.SKIPPED, "not run"
        self._unfit[variant] = Unfit(status, f"{what}: {without_paths(answer.reason)}")
        return CannotMeasure(self._unfit[variant])

    def _insist_on(self, variant: str, verdict: Verdict) -> None:
        """No speed without a right answer."""
        if not verdict.ok:
            self._drop(variant)
            self._unfit[variant] = Unfit(Status.INVALID, f"wrong answers: {verdict.reason}", verdict)
            raise CannotMeasure(self._unfit[variant])

    def _drop(self, variant: str) -> None:
        for workers in (self._workers, self._started):
            if worker := workers.pop(variant, None):
                worker.kill()

    def _failed(self, cell: Cell, unfit: Unfit) -> CellResult:
        verdict = unfit.verdict or self._verdicts.get(cell.variant)
        kernels = self._kernels.get(cell.variant, "")
        return CellResult(cell, unfit.status, without_paths(unfit.reason), kernels, verdict=verdict)


def _checked(cell: Cell, result: CellResult, verdict: Verdict | None) -> CellResult:
    """The worker's result as it may be stored: of the cell asked for, finite, with its verdict and no paths in it."""
    if result.cell != cell:
        return CellResult(cell, Status.ERROR, f"the worker measured {result.cell.id} instead", result.kernels)
    result = replace(result, reason=without_paths(result.reason), verdict=verdict or result.verdict)
    if result.status is Status.OK:
        if not any(result.samples.values()):
            return replace(result, status=Status.ERROR, reason="no samples came back")
        for metric, samples in result.samples.items():
            if not all(math.isfinite(sample) for sample in samples):
                return replace(result, status=Status.ERROR, reason=f"{metric} has samples that are not finite")
    return result
