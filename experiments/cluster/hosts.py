"""What the shards of a sweep get of their hosts, as far as it can be known before they start."""

import os
from dataclasses import replace

from experiments.config import ExperimentConfig
from experiments.environment import Environment, Gpu, machine
from experiments.errors import UserError
from experiments.sweep import Prepared

# The memory of a GPU that is not known yet; each shard finds out what fits.
UNKNOWN_BYTES = 1 << 60


def hosts(config: ExperimentConfig) -> Environment:
    """The machine that measures. Of Slurm's nodes only the software is known, and whether they have GPUs."""
    here = machine()
    if config.cluster.kind != "slurm":
        return here
    gpus = config.cluster.gpus_per_node
    return replace(here, gpu=Gpu("", "", UNKNOWN_BYTES, gpus) if gpus else None)


def device_groups(prepared: Prepared) -> list[list[int]]:
    """The GPUs of each shard that runs at the same time; empty ones where there is nothing to choose: on a CPU, and on
    Slurm, which chooses itself. UserError for GPUs that are not there."""
    config, cluster = prepared.config, prepared.config.cluster
    if cluster.kind == "slurm":
        return [[]] * (cluster.shards or len(prepared.models))
    if config.device != "cuda":
        if config.devices:
            raise UserError(f"devices={config.devices} spreads points over GPUs, and this sweep runs on a CPU; drop it")
        return [[]] * (cluster.shards or 1)
    visible = visible_gpus(prepared.environment)
    for device in config.devices:
        if device not in visible and not config.dry_run:
            raise UserError(f"devices={config.devices}: there is no GPU {device}, only {visible}")
    devices, each = config.devices or visible, max(1, cluster.gpus_per_node)
    groups = [devices[start : start + each] for start in range(0, len(devices) - each + 1, each)]
    if len(groups) < (cluster.shards or 1):
        raise UserError(f"cluster.shards={cluster.shards or 1} of {each} GPUs each need more than the GPUs {devices}")
    return groups[: cluster.shards]


def visible_gpus(environment: Environment) -> list[int]:
    """nvidia-smi's numbers of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(environment.gpu.count if environment.gpu else 0))
    if not all(name.strip().isdecimal() for name in chosen.split(",")):
        raise UserError(f"CUDA_VISIBLE_DEVICES={chosen} must have numbers for a sweep to be spread over them")
    return [int(name) for name in chosen.split(",")]
