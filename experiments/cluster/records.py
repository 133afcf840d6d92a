"""What each shard of a run learns where it runs: shards/<id>.json in the run's folder, merged by whoever reads the run.

Only the launcher writes the manifest, before any shard starts. On Slurm it cannot know the nodes: the first shard to
start makes its record the run's machine (shards/first.json), and the others compare themselves with it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import plain
from experiments.durable import mendable, read_json, sync_folder, write_json
from experiments.manifest import Manifest
from experiments.records import Point

SHARDS = "shards"
FIRST = "first"


@dataclass(frozen=True)
class ShardRecord:
    """One shard. `node` is the host's name, `device` the GPUs it was given (CUDA_VISIBLE_DEVICES), `by_process` its
    models whose engines did not fit on them together; the rest as in the manifest, of this shard's machine."""

    id: str
    node: str
    device: str
    started: str
    points: tuple[Point, ...]
    by_process: tuple[str, ...]
    gpu: str
    machine: dict[str, str]
    software: dict[str, str]
    weights: dict[str, str] = field(default_factory=dict)
    weights_hash: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def machine_type(self) -> str:
        """What makes two machines alike: the name of the GPU, or of the CPU where none is used."""
        return self.gpu or self.machine.get("cpu", "")


def write_record(run: Path, record: ShardRecord) -> None:
    """Keep what a shard knows by now."""
    (run / SHARDS).mkdir(exist_ok=True)
    write_json(_file(run, record.id), plain.encode(record), indent=1)


def drop_record(run: Path, record: ShardRecord) -> None:
    """Forget a shard that measured nothing."""
    _file(run, record.id).unlink(missing_ok=True)


def claim_machine(run: Path, record: ShardRecord) -> None:
    """Make a record that is written already the run's machine, unless another shard was first."""
    first = _file(run, FIRST)
    try:
        # A hard link is made or refused in one step, on network file systems too.
        os.link(_file(run, record.id), first)
        sync_folder(first.parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise mendable(error, first) from error


def read_records(run: Path) -> tuple[list[ShardRecord], list[str]]:
    """The record of every shard that started, sorted, and a line for each that is damaged."""
    found, problems = [], []
    for file in sorted((run / SHARDS).glob("*.json")):
        if file.stem == FIRST:
            continue
        try:
            found.append(_read(file))
        except (OSError, ValueError) as error:
            problems.append(f"{SHARDS}/{file.name}: {error}; what this shard ran on is not known")
    return found, problems


def merged(manifest: Manifest, run: Path) -> Manifest:
    """The manifest with what its shards learnt. ValueError where the first shard's record is damaged."""
    if not manifest.machine and (first := _file(run, FIRST)).exists():
        found = _read(first)
        manifest = replace(manifest, gpu=found.gpu, machine=found.machine, software=found.software)
    for record in read_records(run)[0]:
        manifest = replace(
            manifest,
            weights=record.weights | manifest.weights,
            weights_hash=record.weights_hash | manifest.weights_hash,
            ceilings=_greatest(manifest.ceilings, record.ceilings if record.gpu == manifest.gpu else {}),
        )
    return manifest


def _greatest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Each rate as the better of the two reached it: what one GPU can do, another of its kind can."""
    return {name: max(rates.get(name, 0.0) for rates in (one, other)) for name in {**one, **other}}


def disagreements(records: Sequence[ShardRecord]) -> list[str]:
    """A line for every model that shards loaded with different weights: they started in the same moment, and neither
    could see the other's."""
    models = sorted({model for record in records for model in record.weights_hash})
    hashes = {model: sorted({r.weights_hash[model] for r in records if model in r.weights_hash}) for model in models}
    return [f"shards loaded {model} with unlike weights: {', '.join(h)}" for model, h in hashes.items() if len(h) > 1]


def _file(run: Path, name: str) -> Path:
    return run / SHARDS / f"{name}.json"


def _read(file: Path) -> ShardRecord:
    return plain.decode(ShardRecord, read_json(file))
