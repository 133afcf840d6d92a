"""`fusebench sweep`: plan, measure interleaved, keep every cell.

fusebench sweep experiment=demo
fusebench sweep experiment=headline models=[qwen3-0.6b] variants=[baseline,fused] batches=[1,8]
fusebench sweep experiment=headline dry_run=true          print the plan
fusebench sweep experiment=headline resume=latest         measure what the latest run still lacks
fusebench sweep experiment=headline devices=[0,1]         spread the points over GPUs; cluster=slurm: over machines

A list means "all of these". Failed cells are rows like any other. Exit code 0 when at least one cell of the run is ok,
1 when none is or a shard was lost, 2 for bad input, 130 after Ctrl-C; finished cells stay in every case.
"""

import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from experiments.command_line import INTERRUPTED, composed, run_command
from experiments.config import ExperimentConfig
from experiments.environment import Environment, code, machine, resolve_device, resolve_dtype
from experiments.errors import UserError
from experiments.foresight import Foresight
from experiments.manifest import new_manifest
from experiments.memory import fit_together, load_at_once
from experiments.messages import Ready
from experiments.models import Model
from experiments.plan import ModelPlan, Plan, make_plan, missing_cells
from experiments.pool import Pool
from experiments.progress import Display, make_display, point_title
from experiments.records import OUT_OF_TIME, Cell, CellResult, Status, Verdict
from experiments.run_end import how_to_go_on, show_table
from experiments.settling import Settling
from experiments.store import RunStore, create_run, resume_run
from experiments.validate_inputs import check
from experiments.workplace import Workplace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _main(arguments))


def parse(arguments: Sequence[str]) -> ExperimentConfig | None:
    """The experiment, checked but for the machine; None after `--help` or `--cfg job`, which are answered."""
    return composed(arguments, __doc__ or "")


def _main(arguments: Sequence[str]) -> int:
    config = parse(arguments)
    return 0 if config is None else run_sweep(config, arguments)


def run_sweep(config: ExperimentConfig, arguments: Sequence[str], worker: Sequence[str] | None = None) -> int:
    """Plan, measure and store an experiment; `worker` is the command that starts any worker, instead of the usual."""
    if config.is_spread:
        from experiments.cluster.launch import launch

        return launch(config, arguments, worker)
    prepared = prepare(config)
    if config.dry_run:
        print(describe(prepared.plan))
        return 0
    wanted = new_manifest(prepared.config, prepared.models, prepared.plan, prepared.environment, code())
    if config.resume:
        store, found, damaged = resume_run(Path(config.results_dir), config.resume, wanted)
        missing = set(missing_cells(prepared.plan.cells, {r.cell for r in found if r.reason != OUT_OF_TIME}))
        store.forget(missing)
        done = [result for result in found if result.cell not in missing]
        print("\n".join(f"warning: {line}; it is measured again" for line in damaged), end="\n" if damaged else "")
    else:
        store, done = create_run(Path(config.results_dir), wanted), []
    again = how_to_go_on(arguments, store.manifest.run_id)
    with store:
        try:
            with make_display(prepared.plan.cells, done) as display:
                display.say(f"run {store.path}: {len(prepared.plan.cells)} cells, {len(done)} of them done")
                Sweep(prepared, store, display, done, worker).run()
        except (KeyboardInterrupt, UserError) as error:
            store.discard()
            kept = f"every finished cell is kept; go on with: {again}" if display.finished else "nothing was measured"
            if isinstance(error, UserError):
                raise UserError(f"{error} ({kept})") from error
            print(f"\nstopped; {kept}", file=sys.stderr)
            return INTERRUPTED
    show_table(config, store.manifest.run_id)
    return 0 if display.counts[Status.OK] else 1


@dataclass(frozen=True)
class Prepared:
    """A sound experiment on this machine, planned. `config` has device and dtype resolved."""

    config: ExperimentConfig
    models: list[Model]
    environment: Environment
    plan: Plan


def prepare(config: ExperimentConfig, environment: Environment | None = None) -> Prepared:
    """Check, resolve and plan, for this machine unless given; UserError for whatever is wrong. Starts nothing.

    A plan alone needs no GPU: without one it is that of a GPU on which everything fits.
    """
    models = check(config)
    environment = environment or machine()
    planned_only = config.dry_run and config.device == "cuda"
    device = config.device if planned_only else resolve_device(config.device, environment)
    config = replace(config, device=device, dtype=resolve_dtype(config.dtype, device))
    gpu = environment.gpu if device == "cuda" else None
    alone = frozenset(m.name for m in models if gpu and not fit_together(m, config, gpu.memory_bytes))
    return Prepared(config, models, environment, make_plan(config, [model.name for model in models], alone))


def describe(plan: Plan) -> str:
    """The plan in words and in order."""
    counts = Counter(cell.point for cell in plan.cells)
    lines = [f"{len(plan.cells)} cells: {len(counts)} points x {len(plan.variants)} variants x {plan.rounds} rounds"]
    lines += [
        f"{model.model}: its variants do not fit on the GPU together, so each round starts a process per variant"
        for model in plan.models
        if model.by_process
    ]
    return "\n".join([*lines, *(cell.id for cell in plan.cells)])


class Sweep:
    """Measures what a run lacks, model by model, in the order planned.

    Of the time budget each model gets the share that its missing cells are of all that are left when it begins: what
    one leaves over goes to those after it, and none can use up another's.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: RunStore,
        display: Display,
        done: Sequence[CellResult],
        worker: Sequence[str] | None,
    ) -> None:
        self._prepared, self._store, self._display = prepared, store, display
        self._workplace = Workplace(prepared.config, store.logs, display.say, worker)
        self._done = {result.cell for result in done}
        self._started = time.monotonic()
        self._foresight = Foresight()
        self._settling = Settling(prepared.config, prepared.plan)
        self._left_out = {workload.name: workload.skip for workload in prepared.config.workloads}
        self._verdicts: dict[str, dict[str, Verdict]] = {}
        for result in sorted(done, key=lambda result: result.cell.round):
            self._foresight.learn(result)
            self._settling.learn(result)
            if result.verdict:
                self._verdicts.setdefault(result.cell.point.model, {})[result.cell.variant] = result.verdict

    def run(self) -> None:
        """Every missing cell gets its result."""
        missing = [[cell for cell in plan.cells if cell not in self._done] for plan in self._prepared.plan.models]
        left = sum(map(len, missing))
        for model, plan, cells in zip(self._prepared.models, self._prepared.plan.models, missing, strict=True):
            if cells:
                self._run_model(model, plan, cells, self._deadline(len(cells) / left))
            left -= len(cells)

    def _deadline(self, share: float) -> float:
        """When this share of the time left will be spent."""
        budget_s = self._prepared.config.protocol.time_budget_s
        if budget_s is None:
            return math.inf
        now = time.monotonic()
        return now + share * (self._started + budget_s - now)

    def _run_model(self, model: Model, plan: ModelPlan, missing: Sequence[Cell], deadline: float) -> None:
        self._look()
        with Pool(
            self._workplace,
            model,
            plan,
            self._verdicts.setdefault(model.name, {}),
            self._note_ready,
            None if self._store.manifest.ceilings else self._note_rates,
            load_at_once(model, self._prepared.config, self._prepared.environment),
        ) as pool:
            for round_, cells in itertools.groupby(missing, lambda cell: cell.round):
                out_of_time = time.monotonic() > deadline
                self._look()
                if not out_of_time:
                    self._prepare_round(pool, round_, missing)
                for cell in cells:
                    self._finish(cell, pool, out_of_time)

    def _look(self) -> None:
        for point in self._settling.look():
            self._display.say(f"settled: {point_title(point)} needs no more rounds")

    def _prepare_round(self, pool: Pool, round_: int, missing: Sequence[Cell]) -> None:
        """Have the workers that are needed in place, fresh ones where the protocol asks for them."""
        every = self._prepared.config.protocol.restart_rounds
        first = round_ == missing[0].round
        if first or (every and round_ % every == 0):
            pool.renew()
            left = (cell for cell in missing if cell.round >= round_)
            needed = {cell.variant for cell in left if not self._known(cell)}
            pool.warm_up([variant for variant in self._prepared.plan.variants if variant in needed])

    def _known(self, cell: Cell) -> str | None:
        """Why a cell need not be measured, as far as can be told already."""
        return self._why_left_out(cell) or self._settling.why_skip(cell) or self._foresight.why_skip(cell)

    def _why_left_out(self, cell: Cell) -> str | None:
        """What the experiment says of a variant that is not to run the cell's workload."""
        return self._left_out[cell.point.workload].get(cell.variant)

    def _finish(self, cell: Cell, pool: Pool, out_of_time: bool) -> None:
        self._display.begin(cell)
        started, start = datetime.now(UTC), time.monotonic()
        # A variant that is unfit as a whole has that as its reason, and tells nothing of a cell's size.
        foreseen = None if pool.is_unfit(cell.variant) else self._foresight.why_skip(cell)
        why_skip = self._why_left_out(cell) or self._settling.why_skip(cell)
        why_skip = why_skip or (OUT_OF_TIME if out_of_time else foreseen)
        result = CellResult(cell, Status.SKIPPED, why_skip) if why_skip else pool.measure(cell)
        took_s = time.monotonic() - start
        if not result.started:
            result = replace(result, started=started.isoformat(timespec="seconds"), duration_s=took_s)
        self._store.write_cell(result)
        self._settling.learn(result)
        self._foresight.learn(result)
        self._display.end(result, took_s)

    def _note_ready(self, model: str, variant: str, ready: Ready) -> None:
        """Keep what a worker says of its weights; all workers of a run must have the same."""
        manifest = self._store.manifest
        known = manifest.weights_hash.get(model, ready.weights_hash)
        if known != ready.weights_hash:
            raise UserError(f"{variant} loaded {model} with weights {ready.weights_hash}, this run began with {known}")
        if model not in manifest.weights:
            self._display.say(f"weights of {model}: {ready.weights}")
        if ready.replaced:
            self._display.say(f"{variant} replaces {', '.join(ready.replaced)}")
        told = replace(
            manifest,
            weights=manifest.weights | {model: ready.weights},
            weights_hash=manifest.weights_hash | {model: ready.weights_hash},
            peers=manifest.peers | ({variant: ready.facts} if ready.facts else {}),
        )
        if told != manifest:
            self._store.write_manifest(told)

    def _note_rates(self, rates: dict[str, float]) -> None:
        """Keep what this GPU can do at most."""
        if rates:
            self._store.write_manifest(replace(self._store.manifest, ceilings=rates))


if __name__ == "__main__":
    sys.exit(main())
