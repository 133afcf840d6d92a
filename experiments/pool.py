"""The warm workers of one model, one per variant: loaded and verified side by side, measured with one at a time,
replaced when they break."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from experiments.config import BASELINE
from experiments.errors import UserError
from experiments.loading import Event, Job, load_side_by_side
from experiments.messages import (
    Answer,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Rates,
    Ready,
    Request,
    Verified,
)
from experiments.models import Model
from experiments.plan import ModelPlan
from experiments.records import NO_CEILINGS, NO_VERDICT, NOT_LOADED, Cell, CellResult, Status, Verdict
from experiments.worker_process import WorkerLost, WorkerProcess, without_paths
from experiments.workplace import Workplace

MOST_LOST_LOADS = 2

OnReady = Callable[[str, str, Ready], None]
"""Called with (model, variant, what its worker said) whenever a worker has loaded."""
OnRates = Callable[[dict[str, float]], None]
"""Called with this GPU's measured ceilings."""


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
        workplace: Workplace,
        model: Model,
        plan: ModelPlan,
        verdicts: dict[str, Verdict],
        on_ready: OnReady,
        on_rates: OnRates | None,
        at_once: int = 1,
    ) -> None:
        """`verdicts` are those already earned on this model, by variant; new ones are added.

        With `on_rates` the baseline's worker measures this GPU's ceilings before its first cell. `at_once` workers
        load side by side.
        """
        self._workplace, self._model, self._plan, self._at_once = workplace, model, plan, at_once
        self._verdicts, self._on_ready, self._on_rates = verdicts, on_ready, on_rates
        self._protocol, self._say = workplace.config.protocol, workplace.say
        self._variants = {variant.name: variant for variant in workplace.config.variants}
        self._workers: dict[str, WorkerProcess] = {}
        self._kernels: dict[str, str] = {}
        self._gpu_pids: dict[str, tuple[int, ...]] = {}
        self._unfit: dict[str, Unfit] = {}
        self._lost_loads: Counter[str] = Counter()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.renew()
        while self._workers:
            self._workers.popitem()[1].kill()

    def warm_up(self, variants: Sequence[str]) -> None:
        """Load and verify the workers of these variants, so that every cell finds all of them in place."""
        if self._plan.by_process:
            return
        wanted = []
        for variant in variants:
            try:
                self._insist_on(variant)
                wanted += [variant] if variant not in self._workers else []
            except CannotMeasure as error:
                self._say(f"{self._model.name}, {variant}: {error}")
        for variant in wanted:
            # Side by side, whatever may load so: each imports for seconds without a GPU.
            self._workers[variant] = self._start(variant)
        alone = [variant for variant in wanted if self._loads_alone(variant)]
        # What torch.compile makes takes longest, so it begins first.
        ours = sorted(set(wanted) - set(alone), key=lambda name: (not self._compiles(name), wanted.index(name)))
        failed = self._load(ours, self._at_once)
        for variant in alone:
            failed |= self._load([variant])
        for variant, why in failed.items():
            self._say(f"{self._model.name}, {variant}: {why}")

    def renew(self) -> None:
        """End every worker; the next cells find fresh ones, whose verdicts are known already."""
        for worker in self._workers.values():
            worker.dismiss()
        while self._workers:
            self._workers.popitem()[1].close()

    def is_unfit(self, variant: str) -> bool:
        """Whether the variant cannot be measured at all, so that each of its cells fails at once."""
        return variant in self._unfit

    def measure(self, cell: Cell) -> CellResult:
        """Measure one cell; whatever goes wrong is its result. UserError for input that no cell can be made of."""
        try:
            worker = self._worker(cell.variant)
            if cell.variant == BASELINE:
                self._measure_ceilings(worker)
            answer = self._ask(cell.variant, worker, Measure(cell, self._ours()), self._protocol.cell_timeout_s)
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
        self._insist_on(variant)
        if variant not in self._workers:
            if self._plan.by_process:
                self.renew()
            if error := self._load([variant]).get(variant):
                raise error
        return self._workers[variant]

    def _start(self, variant: str) -> WorkerProcess:
        log = self._workplace.logs / f"{self._model.name}.{variant}.log"
        return WorkerProcess(log, self._workplace.command_for(self._variants[variant]))

    def _loads_alone(self, variant: str) -> bool:
        """Engines with processes of their own: the GPU tells them by who came meanwhile, vLLM sizes its cache by what
        is free."""
        return self._variants[variant].is_peer or self._variants[variant].runtime.tensor_parallel_size > 1

    def _compiles(self, variant: str) -> bool:
        return self._variants[variant].runtime.compile

    def _load(self, variants: Sequence[str], at_once: int = 1) -> dict[str, CannotMeasure]:
        """Have these variants' workers loaded and found right, so many side by side; why not, by variant, where not."""
        failed: dict[str, CannotMeasure] = {}
        crowded = []
        jobs = {self._job(variant): variant for variant in variants}

        def take(event: Event) -> None:
            variant, what = jobs[event.job], event.what
            if at_once > 1 and isinstance(what, Failed) and what.kind == "oom":
                self._drop(variant)
                crowded.append(variant)
                return
            try:
                self._take(variant, event)
            except CannotMeasure as error:
                failed[variant] = error

        load_side_by_side(list(jobs), at_once, take)
        if crowded:
            self._say(f"{self._model.name}: no memory beside others for {', '.join(crowded)}; again, one at a time")
        return failed | (self._load(crowded) if crowded else {})

    def _job(self, variant: str) -> Job:
        worker = self._workers[variant] = self._workers.get(variant) or self._start(variant)
        load = self._workplace.load(self._model, self._variants[variant], self._plan.points)
        return Job(worker, load, variant not in self._verdicts, self._protocol.load_timeout_s)

    def _take(self, variant: str, event: Event) -> None:
        """Keep what a worker that loads has come to; CannotMeasure where that ends it."""
        loads = isinstance(event.request, Load)
        what, status = (NOT_LOADED, Status.ERROR) if loads else (NO_VERDICT, Status.INVALID)
        match event.what:
            case None:
                self._say(f"{'loading' if loads else 'checking the answers of'} {self._model.name}, {variant}")
            case str():
                self._say(event.what)
            case Ready() if loads:
                self._kernels[variant], self._gpu_pids[variant] = event.what.kernels, event.what.gpu_pids
                self._on_ready(self._model.name, variant, event.what)
            case Verified() if not loads:
                self._verdicts[variant] = event.what.verdict
                self._insist_on(variant)
            case WorkerLost():
                self._drop(variant)
                raise self._lose(variant, Unfit(event.what.status, f"{what}: {event.what.reason}"))
            case _:
                raise self._give_up(variant, event.what, what, status)

    def _lose(self, variant: str, unfit: Unfit) -> CannotMeasure:
        """A worker that was lost while it loaded: the next one may live, and no other is tried after that. What hung
        for as long as it might is not waited for again."""
        self._lost_loads[variant] += 1
        if self._lost_loads[variant] >= MOST_LOST_LOADS or unfit.status is Status.TIMEOUT:
            self._unfit.setdefault(variant, unfit)
        return CannotMeasure(unfit)

    def _measure_ceilings(self, worker: WorkerProcess) -> None:
        """Here, and not while it loads: others may be loading then."""
        if self._on_rates is None:
            return
        answer = self._ask(BASELINE, worker, MeasureCeilings(), self._protocol.load_timeout_s)
        if not isinstance(answer, Rates):
            raise self._give_up(BASELINE, answer, NO_CEILINGS, Status.ERROR)
        self._on_rates(answer.rates)
        self._on_rates = None

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

    def _insist_on(self, variant: str) -> None:
        """No speed without a right answer: CannotMeasure where one is known to be wrong, or not to be had."""
        verdict = self._verdicts.get(variant)
        if verdict and not verdict.ok:
            self._drop(variant)
            self._unfit.setdefault(variant, Unfit(Status.INVALID, f"wrong answers: {verdict.reason}", verdict))
        if variant in self._unfit:
            raise CannotMeasure(self._unfit[variant])

    def _drop(self, variant: str) -> None:
        if worker := self._workers.pop(variant, None):
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
