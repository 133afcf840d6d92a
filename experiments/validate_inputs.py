"""Everything that can be known to be wrong before a worker starts, each as one line that names the key."""

import importlib.util
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from experiments.compose import suggest
from experiments.config import (
    BASELINE,
    CLUSTERS,
    DEVICES,
    DTYPES,
    PEERS,
    REQUEST_KINDS,
    WEIGHTS,
    WORKLOAD_KINDS,
    ClusterConfig,
    ExperimentConfig,
    ProtocolConfig,
    VariantConfig,
    WorkloadConfig,
)
from experiments.errors import UserError
from experiments.models import Model, find_model
from experiments.stats import MIN_ROUNDS

MOST_SEED = 2**63
MOST_BATCH = 1_000_000
MOST_ROUNDS = 10_000
# Keys that only some kinds of workload read; elsewhere a value would be silently without effect.
_KEYS_OF = {
    "decode": {"sigma"},
    "shared_prefix": {"prefix_tokens"},
    "offline": {"input_tokens", "output_tokens"},
    "serving": {
        *("input_tokens", "output_tokens", "rates", "arrival_cv"),
        *("max_num_seqs", "ttft_slo_ms", "itl_slo_ms"),
    },
}


def check(config: ExperimentConfig) -> list[Model]:
    """The models of a sound experiment; UserError for the first thing wrong."""
    for key in ("models", "variants", "workloads"):
        if not getattr(config, key):
            raise UserError(f"{key} is empty: name at least one")
    _check_name("name", config.name)
    _check_choice("device", config.device, DEVICES)
    _check_choice("dtype", config.dtype, DTYPES)
    _check_choice("weights", config.weights, WEIGHTS)
    if not -MOST_SEED <= config.seed < MOST_SEED:
        raise UserError(f"seed={config.seed} must fit 64 bits, its sign among them")
    _check_variants(config)
    _check_protocol(config.protocol)
    _check_cluster(config)
    for workload in config.workloads:
        _check_workload(workload)
        _check_duration(workload, config.protocol)
    models = [find_model(source) for source in config.models]
    _check_unique("models", [model.name for model in models])
    _check_unique("workloads", [workload.name for workload in config.workloads])
    for workload in config.workloads:
        for name in workload.models:
            find_model(name)
    for model in models:
        workloads = [workload for workload in config.workloads if workload.is_for(model.name)]
        if not workloads:
            raise UserError(f"models: {model.name} has nothing to run, for every workload is kept to other models")
        for workload in workloads:
            _check_positions(model, workload, config.seed)
    return models


def _check_variants(config: ExperimentConfig) -> None:
    names = [variant.name for variant in config.variants]
    _check_unique("variants", names)
    for name in names:
        _check_name("variants", name)
    for variant in config.variants:
        _check_kind(variant)
        _check_peer(variant)
        where = f"variant.{variant.name}.runtime.tensor_parallel_size"
        _check_above(where, variant.runtime.tensor_parallel_size, 0)
    if BASELINE not in names:
        raise UserError(f"variants={names} lacks {BASELINE!r}: every speed-up is against it, so add it to the list")


def _check_kind(variant: VariantConfig) -> None:
    """Looked for, not imported: the package imports torch."""
    package = importlib.util.find_spec("variants")
    folders = package.submodule_search_locations if package else None
    known = [module.name for module in pkgutil.iter_modules(folders) if not module.ispkg]
    if not variant.is_peer and variant.kind not in known:
        mend = suggest(variant.kind, [*known, *PEERS])
        raise UserError(f"variant.{variant.name}.kind={variant.kind}: there is no variants/{variant.kind}.py{mend}")


def _check_peer(variant: VariantConfig) -> None:
    where = f"variant.{variant.name}"
    if variant.is_peer and variant.switches:
        raise UserError(f"{where}.switches: {variant.kind} is another engine and has none of ours; take them out")
    if variant.path and variant.kind != "nano_vllm":
        raise UserError(f"{where}.path: only nano_vllm is run from a checkout; take it out")
    if variant.path and not (Path(variant.path).expanduser() / "nanovllm").is_dir():
        raise UserError(f"{where}.path={variant.path} holds no folder nanovllm; give a checkout of nano-vLLM")


def _check_protocol(protocol: ProtocolConfig) -> None:
    counts = ("rounds", "windows", "steps_per_window", "warmup_max_steps", "verdict_tokens")
    for key in (*counts, "load_timeout_s", "cell_timeout_s"):
        _check_above(f"protocol.{key}", getattr(protocol, key), 0)
    if protocol.rounds > MOST_ROUNDS:
        raise UserError(f"protocol.rounds={protocol.rounds} must be {MOST_ROUNDS} or less")
    for key in ("window_ms", "warmup_min_steps", "flagged_repeats"):
        _check_above(f"protocol.{key}", getattr(protocol, key), -1e-9)
    for key in ("time_budget_s", "target_ci", "restart_rounds"):
        if getattr(protocol, key) is not None:
            _check_above(f"protocol.{key}", getattr(protocol, key), 0)
    if protocol.min_rounds < MIN_ROUNDS:
        raise UserError(f"protocol.min_rounds={protocol.min_rounds} must be {MIN_ROUNDS} or more for an interval")
    least, most = protocol.warmup_min_steps, protocol.warmup_max_steps
    if most < least:
        raise UserError(f"protocol.warmup_max_steps={most} must not be below protocol.warmup_min_steps={least}")


def _check_cluster(config: ExperimentConfig) -> None:
    cluster, devices = config.cluster, config.devices
    _check_choice("cluster.kind", cluster.kind, CLUSTERS)
    _check_above("cluster.timeout_min", cluster.timeout_min, 0)
    _check_above("cluster.gpus_per_node", cluster.gpus_per_node, -1)
    if cluster.shards is not None:
        _check_above("cluster.shards", cluster.shards, 0)
    if not config.is_spread and cluster != ClusterConfig():
        raise UserError("cluster.* is set, but nothing is spread: add cluster=slurm, cluster=local or devices=[...]")
    if devices and cluster.kind == "slurm":
        raise UserError("devices is for this host; on Slurm each shard gets cluster.gpus_per_node GPUs")
    _check_unique("devices", [str(device) for device in devices])
    for device in devices:
        _check_above("devices", device, -1)


def _check_workload(workload: WorkloadConfig) -> None:
    where = f"workload.{workload.name}"
    _check_name("workloads", workload.name)
    _check_choice(f"{where}.kind", workload.kind, WORKLOAD_KINDS)
    if not workload.pairs():
        raise UserError(f"{where} has no points: give it batches and lengths, or points")
    for batch, length in workload.pairs():
        _check_above(f"{where}: batch", batch, 0)
        if batch > MOST_BATCH:
            raise UserError(f"{where}: batch={batch} must be {MOST_BATCH} or less")
        _check_above(f"{where}: length", length, -1 if workload.kind in REQUEST_KINDS else 0)
    _check_unique(where, [f"[{batch}, {length}]" for batch, length in workload.pairs()])
    _check_unused(where, workload)
    if workload.kind in REQUEST_KINDS:
        for key in ("input_tokens", "output_tokens"):
            _check_range(f"{where}.{key}", getattr(workload, key))
    _check_above(f"{where}.sigma", workload.sigma, -1e-9)
    if workload.kind == "shared_prefix":
        _check_prefix(where, workload)
    if workload.kind == "serving":
        _check_serving(where, workload)


def _check_unused(where: str, workload: WorkloadConfig) -> None:
    blank = WorkloadConfig(workload.name, workload.kind)
    mine = _KEYS_OF.get(workload.kind, set())
    for key in sorted(set().union(*_KEYS_OF.values()) - mine):
        if getattr(workload, key) != getattr(blank, key):
            raise UserError(f"{where}.{key} has no meaning for kind={workload.kind}: leave it out")


def _check_prefix(where: str, workload: WorkloadConfig) -> None:
    _check_above(f"{where}.prefix_tokens", workload.prefix_tokens, 0)
    shortest = min(length for _, length in workload.pairs())
    if workload.prefix_tokens >= shortest:
        raise UserError(
            f"{where}.prefix_tokens={workload.prefix_tokens} must be below the shortest length, {shortest}: every "
            "prompt needs a token of its own"
        )


def _check_serving(where: str, workload: WorkloadConfig) -> None:
    if len(workload.rates) != 1 or not 0 < workload.rates[0] < math.inf:
        raise UserError(f"{where}.rates={workload.rates} must be a list of positive requests per second")
    if workload.output_tokens[0] < 2:
        raise UserError(f"{where}.output_tokens={workload.output_tokens} must be 2 or more: one has no time between")
    _check_above(f"{where}.arrival_cv", workload.arrival_cv, -1e-9)
    if workload.arrival_cv and not 1e-3 <= workload.arrival_cv <= 1e3:
        raise UserError(f"{where}.arrival_cv={workload.arrival_cv} must be 0, or from 0.001 to 1000")
    for key in ("max_num_seqs", "ttft_slo_ms", "itl_slo_ms"):
        _check_above(f"{where}.{key}", getattr(workload, key), 0)


def _check_duration(workload: WorkloadConfig, protocol: ProtocolConfig) -> None:
    """A window of serving lasts at least as long as its requests take to arrive, and one more warms up."""
    if workload.kind != "serving":
        return
    requests = max(batch for batch, _ in workload.pairs())
    least_s = (protocol.windows + 1) * requests / workload.rates[0]
    if least_s >= protocol.cell_timeout_s:
        raise UserError(
            f"workload.{workload.name}: {requests} requests at {workload.rates[0]:g} per second, {protocol.windows} "
            f"windows and a warm-up, take {least_s:.0f} s, protocol.cell_timeout_s is {protocol.cell_timeout_s:g}"
        )


def _check_positions(model: Model, workload: WorkloadConfig, seed: int) -> None:
    """Every length must fit the model's positions, where they are known; a worker checks the rest when it loads."""
    longest = max(workload.longest(batch, length, seed) for batch, length in workload.pairs())
    if model.max_positions is not None and longest > model.max_positions:
        raise UserError(
            f"workload.{workload.name}: length {longest} is longer than the {model.max_positions} positions of "
            f"{model.name}; shorten lengths, or leave the model out"
        )


def _check_name(key: str, name: str) -> None:
    """Names become parts of file names, separated by dots."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"{key}: {name!r} may have letters, digits, - and _ only, for it names files")


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not one of {', '.join(choices)}")


def _check_above(key: str, value: float, bound: float) -> None:
    if not bound < value < math.inf:
        least = "finite" if value == math.inf else "positive" if bound == 0 else "0 or more"
        raise UserError(f"{key}={value} must be {least}")


def _check_range(key: str, ends: list[int]) -> None:
    if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
        raise UserError(f"{key}={ends} must be [least, most] with 1 <= least <= most")


def _check_unique(key: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{key} has {twice[0]} twice; every entry must be different")
