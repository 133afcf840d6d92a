"""What a report says of a run as a whole, taken from its manifest and its shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from experiments.cluster.records import ShardRecord
from experiments.config import BASELINE, ExperimentConfig, ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.floors import DTYPE_BYTES, Ceilings
from experiments.manifest import Manifest
from experiments.reporting.again import Asked, asked_for
from experiments.stats import Looks


@dataclass(frozen=True)
class RunInfo:
    """Who, where, what and how of a run. `variants` and `workloads` are by name, in the order planned; `models` maps a
    name to its sizes.

    `by_process` are models too large for all engines at once: there each variant and round had a fresh process.
    `controls` are variants that are the baseline under another name: any speed-up of theirs is noise. `shards` are the
    processes that the run was spread over, wherever they ran. `peers` has what other engines are and chose, by variant.
    """

    experiment: str
    run_id: str
    question: str
    created: str
    commit: str
    dirty: bool
    device: str
    dtype: str
    gpu: str
    machine: str
    cpu: str
    ceilings: Ceilings | None
    software: dict[str, str]
    models: dict[str, dict[str, Any]]
    weights: dict[str, str]
    controls: tuple[str, ...]
    variants: dict[str, VariantConfig]
    workloads: dict[str, WorkloadConfig]
    protocol: ProtocolConfig
    seed: int
    by_process: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    peers: dict[str, dict[str, str]]
    config: ExperimentConfig

    @classmethod
    def of(cls, manifest: Manifest, shards: Sequence[ShardRecord] = ()) -> "RunInfo":
        """Of a run and of the processes that it was spread over."""
        config, variants = manifest.config, manifest.config.variants
        apart = {*manifest.plan.by_process, *(name for shard in shards for name in shard.by_process)}
        return cls(
            experiment=manifest.experiment,
            run_id=manifest.run_id,
            question=manifest.question,
            created=manifest.created,
            commit=manifest.commit,
            dirty=manifest.dirty,
            device=manifest.device,
            dtype=manifest.dtype,
            gpu=manifest.gpu,
            machine=", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(manifest.machine.items())),
            cpu=manifest.machine.get("cpu", ""),
            ceilings=Ceilings.of(manifest.ceilings),
            software=dict(sorted(manifest.software.items())),
            models=manifest.models,
            weights=dict(sorted(manifest.weights.items())),
            controls=_controls(variants),
            variants={v.name: v for v in variants},
            workloads={w.name: w for w in config.workloads},
            protocol=config.protocol,
            seed=config.seed,
            by_process=tuple(sorted(apart)),
            shards=tuple(shards),
            peers=manifest.peers,
            config=config,
        )

    @cached_property
    def asked(self) -> Asked:
        """What to type to plan it once more."""
        return asked_for(self.config)

    @property
    def machine_type(self) -> str:
        """What makes two machines alike: the name of the GPU, or of the CPU where none is used."""
        return self.gpu or self.cpu

    @property
    def looks(self) -> Looks:
        """After which rounds a comparison of this run may have been stopped."""
        return Looks.planned(self.protocol.rounds, self.protocol.min_rounds, self.protocol.target_ci)

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight."""
        return DTYPE_BYTES[self.dtype]

    def kind(self, workload: str) -> str:
        """Kind of a workload: prefill, decode, offline, ..."""
        return self.workloads[workload].kind


def _controls(variants: Sequence[VariantConfig]) -> tuple[str, ...]:
    """Variants that differ from the baseline in nothing but their name."""
    return tuple(v.name for v in variants if v.name != BASELINE and replace(v, name=BASELINE) in variants)
