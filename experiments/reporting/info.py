"""What a run's manifest says, as one frozen value with an honest blank wherever it says nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments import plain
from experiments.cluster.records import ShardRecord
from experiments.config import BASELINE, WorkloadConfig
from experiments.floors import DTYPE_BYTES, Ceilings
from experiments.records import Cell
from experiments.stats import Looks


@dataclass(frozen=True)
class RunInfo:
    """Who, where, what and how of a run. `workloads` are by name, `models` maps a name to its sizes.

    `variant_kinds`, `switches` and `switched_on` say what each variant is made of: its kind, the switches that it has,
    and which of them and of its runtime flags are on. `by_process` are models too large for all engines at once: there
    each variant and round had a fresh process. `controls` are variants that are the baseline under another name: any
    speed-up of theirs is noise. `shards` are the processes that the run was spread over, wherever they ran. `peers` has
    what other engines are and chose, by variant.
    """

    experiment: str
    run_id: str
    question: str = ""
    created: str = ""
    commit: str = ""
    dirty: bool = False
    device: str = ""
    dtype: str = ""
    gpu: str = ""
    machine: str = ""
    cpu: str = ""
    ceilings: Ceilings | None = None
    software: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    variant_kinds: dict[str, str] = field(default_factory=dict)
    switches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    switched_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    workloads: dict[str, WorkloadConfig] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    by_process: tuple[str, ...] = ()
    shards: tuple[ShardRecord, ...] = ()
    peers: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def machine_type(self) -> str:
        """What makes two machines alike: the name of the GPU, or of the CPU where none is used."""
        return self.gpu or self.cpu

    @property
    def looks(self) -> Looks:
        """After which rounds a comparison of this run may have been stopped."""
        rounds, target_ci = int(self.protocol.get("rounds") or 1), self.protocol.get("target_ci")
        return Looks.planned(rounds, int(self.protocol.get("min_rounds") or rounds), target_ci)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight."""
        return DTYPE_BYTES.get(self.dtype, 2)

    def workload(self, name: str) -> WorkloadConfig:
        """A workload as the manifest has it; one that it does not is of the kind that it is named after."""
        return self.workloads.get(name) or WorkloadConfig(name, kind=name)

    def kind(self, workload: str) -> str:
        """Kind of a workload: prefill, decode, offline, ..."""
        return self.workload(workload).kind


def run_info(manifest: Mapping[str, Any], experiment: str = "", run_id: str = "") -> RunInfo:
    """Read a manifest; unknown keys are passed over, missing ones stay blank."""
    config = _mapping(manifest, "config")
    machine = _mapping(manifest, "machine")
    workloads, variants = _named(config.get("workloads")), _named(config.get("variants"))
    shards = tuple(plain.decode(ShardRecord, record) for record in manifest.get("shards") or [])
    apart = {*(_mapping(manifest, "plan").get("by_process") or ()), *(name for s in shards for name in s.by_process)}
    return RunInfo(
        experiment=_text(manifest, "experiment") or _text(config, "name") or experiment,
        run_id=_text(manifest, "run_id") or run_id,
        question=_text(manifest, "question") or _text(config, "question"),
        created=_text(manifest, "created"),
        commit=_text(manifest, "commit"),
        dirty=bool(manifest.get("dirty")),
        device=_text(manifest, "device") or _text(config, "device"),
        dtype=_text(manifest, "dtype") or _text(config, "dtype"),
        gpu=_text(manifest, "gpu"),
        machine=", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in sorted(machine.items()) if value not in (None, "")
        ),
        cpu=_text(machine, "cpu"),
        ceilings=Ceilings.of(_mapping(manifest, "ceilings")),
        software={key: str(value) for key, value in sorted(_mapping(manifest, "software").items())},
        models={name: dict(dims) for name, dims in _mapping(manifest, "models").items() if isinstance(dims, dict)},
        weights={name: str(words) for name, words in sorted(_mapping(manifest, "weights").items())},
        controls=_controls(variants),
        variants=tuple(v["name"] for v in variants),
        variant_kinds={v["name"]: str(v.get("kind", v["name"])) for v in variants},
        switches={v["name"]: tuple(_mapping(v, "switches")) for v in variants},
        switched_on={v["name"]: _switched_on(v) for v in variants},
        workloads={w["name"]: _workload(w) for w in workloads},
        protocol=_mapping(config, "protocol"),
        seed=config.get("seed"),
        by_process=tuple(sorted(map(str, apart))),
        shards=shards,
        peers={name: facts for name, facts in _mapping(manifest, "peers").items() if isinstance(facts, dict)},
    )


def planned_cells(manifest: Mapping[str, Any]) -> tuple[list[Cell], list[str]]:
    """The plan as the manifest lists it, and what of it could not be read."""
    cells, problems = [], []
    for index, item in enumerate(manifest.get("cells") or []):
        try:
            cells.append(plain.decode(Cell, item))
        except ValueError as error:
            problems.append(f"manifest.json, cell {index}: {error}")
    return cells, problems


def _named(items: Any) -> list[dict[str, Any]]:
    return [item for item in items or [] if isinstance(item, dict) and "name" in item]


def _controls(variants: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Variants that differ from the baseline in nothing but their name."""
    settings = {v["name"]: {key: value for key, value in v.items() if key != "name"} for v in variants}
    return tuple(name for name, those in settings.items() if name != BASELINE and those == settings.get(BASELINE))


def _switched_on(variant: Mapping[str, Any]) -> tuple[str, ...]:
    flags = _mapping(variant, "switches") | _mapping(variant, "runtime")
    return tuple(name for name, on in flags.items() if on is True)


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return "" if value is None else str(value)


def _workload(data: Mapping[str, Any]) -> WorkloadConfig:
    known = {key: value for key, value in data.items() if key in WorkloadConfig.__dataclass_fields__}
    return WorkloadConfig(**{"kind": data["name"], **known})
