"""What a run is of: question, configuration, plan, machine, code and weights. One manifest.json in its folder.

Nothing in it names a user, a folder or an environment variable.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from experiments import plain
from experiments.config import ClusterConfig, ExperimentConfig
from experiments.environment import Code, Environment, run_id_of
from experiments.models import Model
from experiments.plan import Plan
from experiments.records import Cell, Point

SCHEMA = 1
# Two runs on different releases of these are not one run.
_PINNED = ("torch", "triton")
# Overrides that only place, spread or resume a run.
_PLACES = re.compile(r"(results_dir|reports_dir|dry_run|resume|devices|cluster[\w.]*)=")


@dataclass(frozen=True)
class PlanSummary:
    """A plan without its order, which the seed decides and `digest` fixes: the cells are a product."""

    seed: int
    rounds: int
    variants: tuple[str, ...]
    points: tuple[Point, ...]
    by_process: tuple[str, ...]
    digest: str

    def cells(self) -> list[Cell]:
        """Every planned cell, in no order that means anything."""
        return [Cell(p, v, r) for r in range(self.rounds) for p in self.points for v in self.variants]


@dataclass(frozen=True)
class Manifest:
    """A run. `device` and `dtype` are resolved; `gpu` is empty on a CPU.

    Per model, as soon as a worker has loaded it: `models` its dimensions, `weights` what they are in words,
    `weights_hash` which. `peers` says by variant what other engines are and chose. `ceilings` is what this machine
    reached in this run: `read_bytes_per_s`, `bf16_flop_per_s`.
    """

    schema: int
    run_id: str
    experiment: str
    question: str
    created: str
    commit: str
    dirty: bool
    source_hash: str
    device: str
    dtype: str
    gpu: str
    machine: dict[str, str]
    software: dict[str, str]
    config: ExperimentConfig
    plan: PlanSummary
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    weights_hash: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=dict)


def new_manifest(
    config: ExperimentConfig, models: list[Model], plan: Plan, environment: Environment, code: Code
) -> Manifest:
    """The manifest of a run that starts now; `config` has device and dtype resolved."""
    now = datetime.now(UTC)
    return Manifest(
        schema=SCHEMA,
        run_id=run_id_of(now, code),
        experiment=config.name,
        question=config.question,
        created=now.isoformat(timespec="seconds"),
        commit=code.commit,
        dirty=code.dirty,
        source_hash=code.source_hash,
        device=config.device,
        dtype=config.dtype,
        gpu=environment.gpu.name if environment.gpu and config.device == "cuda" else "",
        machine=_machine(environment),
        software=dict(environment.packages),
        config=_without_paths(config, models),
        plan=_summary(plan),
        models={model.name: dict(model.sizes) for model in models if model.sizes},
    )


def differences(old: Manifest, new: Manifest) -> list[str]:
    """Why results of `new` may not be added to the run `old`, one phrase each; empty where they may."""
    found = list(changes(*(plain.encode(_what_is_measured(run.config)) for run in (old, new))))
    both = old.models.keys() & new.models.keys()
    before, after = ({"model": {name: run.models[name] for name in both}} for run in (old, new))
    found += changes(before, after)
    if not found and old.plan != new.plan:
        found.append("the plan is ordered differently")
    if old.source_hash != new.source_hash:
        found.append(f"the code that is timed or times changed since commit {old.commit[:7]}")
    found += changes({"device": old.device}, {"device": new.device})
    pinned_old, pinned_new = ({name: run.software.get(name) for name in _PINNED} for run in (old, new))
    return [*found, *changes(pinned_old, pinned_new), *unlike_machines(old, new)]


def unlike_machines(old: Manifest, new: Manifest) -> list[str]:
    """How the machine of `new` differs from that of the run `old`; empty where one of them is not known yet, for
    a cluster's nodes are known only once a shard has started."""
    if not (old.machine and new.machine):
        return []
    if not old.gpu and not new.gpu:
        return list(changes({"cpu": old.machine.get("cpu")}, {"cpu": new.machine.get("cpu")}))
    return list(changes({"gpu": old.gpu}, {"gpu": new.gpu}))


def changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """`KEY was X and is Y` for every leaf that differs; lists of the same named things are compared thing by thing."""
    if _names(old) == _names(new) != []:
        old, new = ({item["name"]: item for item in items} for items in (old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            yield from changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key} was {_brief(old)} and is {_brief(new)}"


def _names(value: Any) -> list[str]:
    """The names of a list of named things; empty for anything else."""
    return [item["name"] for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _brief(value: Any) -> str:
    return f"[{', '.join(_names(value) or map(str, value))}]" if isinstance(value, list) else str(value)


def _machine(environment: Environment) -> dict[str, str]:
    described = {
        "python": environment.python,
        "platform": environment.platform,
        "cpu": environment.cpu,
        "cpu_count": str(environment.cpu_count),
    }
    if gpu := environment.gpu:
        described |= {"driver": gpu.driver, "gpu_memory": f"{gpu.memory_bytes / 2**30:.0f} GiB", "gpus": str(gpu.count)}
    return described


def _without_paths(config: ExperimentConfig, models: list[Model]) -> ExperimentConfig:
    """The configuration with models by their short names, and without what only places, spreads or resumes the run."""
    names = [model.name for model in models]
    variants = [dataclasses.replace(variant, path="") for variant in config.variants]
    kept = dataclasses.replace(config, models=names, variants=variants, cluster=ClusterConfig(), devices=[])
    kept = dataclasses.replace(kept, overrides=list(_overrides_without_paths(config, names)))
    return dataclasses.replace(kept, results_dir="results", reports_dir="reports", dry_run=False, resume=None)


def _overrides_without_paths(config: ExperimentConfig, models: list[str]) -> Iterator[str]:
    paths = [variant.path for variant in config.variants if variant.path]
    for text in config.overrides:
        if text.startswith("models="):
            yield f"models=[{','.join(models)}]"
        elif not _PLACES.match(text) and not any(path in text for path in paths):
            yield text


def _what_is_measured(config: ExperimentConfig) -> ExperimentConfig:
    """Neither how long one sitting may last nor how it was asked for decides anything about what it measures."""
    return dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, time_budget_s=None), overrides=[])


def _summary(plan: Plan) -> PlanSummary:
    points = tuple(point for model in plan.models for point in model.points)
    by_process = tuple(model.model for model in plan.models if model.by_process)
    return PlanSummary(plan.seed, plan.rounds, plan.variants, points, by_process, plan.digest)
