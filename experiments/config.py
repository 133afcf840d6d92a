"""What an experiment is, as plain frozen values. `experiments.compose` makes them from YAML and overrides."""

from dataclasses import dataclass, field
from typing import Any

from experiments.errors import UserError
from experiments.lengths import lognormal_lengths

WORKLOAD_KINDS = ("prefill", "shared_prefix", "decode", "offline", "serving")
REQUEST_KINDS = ("offline", "serving")  # Their batch is a number of requests, each with lengths of its own.
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")
WEIGHTS = ("auto", "random", "real")
CLUSTERS = ("none", "local", "slurm")
BASELINE = "baseline"
# Kinds of variant that are somebody else's engine: experiments/peers/<kind>.py drives it.
PEERS = ("transformers", "vllm", "nano_vllm")


@dataclass(frozen=True)
class RuntimeConfig:
    """How a variant launches its work: CUDA graphs, torch.compile, programmatic dependent launch, on how many GPUs."""

    cuda_graphs: bool = True
    compile: bool = False
    pdl: bool = False
    tensor_parallel_size: int = 1


@dataclass(frozen=True)
class VariantConfig:
    """One way to differ from the baseline: `variants/<kind>.py` with its rungs switched on or off.

    Where `kind` is one of PEERS it is another engine altogether. That has no switches; `path` is its checkout, for a
    peer that is no package.
    """

    name: str
    kind: str
    switches: dict[str, bool] = field(default_factory=dict)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    path: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether this is another engine."""
        return self.kind in PEERS


@dataclass(frozen=True)
class WorkloadConfig:
    """Where an engine is measured: the product of batches and lengths, or exactly `points` where given.

    `length` is the prompt of a prefill, the context of a decode step. For `offline` and `serving` a batch is a number
    of requests, lengths are [0], and each request's prompt and answer are drawn from the two token ranges, ends
    included. Where `models` is not empty, only those models run it; `skip` names variants that do not, and says why.

    `decode`: with `sigma` above 0 the contexts of a batch are log-normal, `length` on average.
    `shared_prefix`: `batch` prompts whose first `prefix_tokens` are in the cache.
    `serving`: requests arrive at each of `rates` per second (composing makes a workload of each), the gaps with this
    coefficient of variation: 1 is Poisson, above 1 comes in bursts, 0 is a metronome. At most `max_num_seqs` run at
    once. A request is good where its first token comes within `ttft_slo_ms` and its others `itl_slo_ms` apart on
    average.
    """

    name: str
    kind: str
    batches: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    points: list[list[int]] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    skip: dict[str, str] = field(default_factory=dict)
    sigma: float = 0.0
    prefix_tokens: int = 0
    rates: list[float] = field(default_factory=list)
    arrival_cv: float = 1.0
    max_num_seqs: int = 256
    ttft_slo_ms: float = 0.0
    itl_slo_ms: float = 0.0

    def is_for(self, model: str) -> bool:
        """Whether a model of this name runs the workload."""
        return not self.models or model in self.models

    def pairs(self) -> list[tuple[int, int]]:
        """Every (batch, length) of this workload, in the order written. UserError for a point that is no pair."""
        for point in self.points:
            if len(point) != 2:
                raise UserError(f"workload.{self.name}.points: {point} must be a pair, [batch, length]")
        if self.points:
            return [(batch, length) for batch, length in self.points]
        return [(batch, length) for batch in self.batches for length in self.lengths]

    def contexts(self, batch: int, length: int, seed: int) -> list[int]:
        """Tokens that each sequence of a decode step has in the cache; `seed` is the run's."""
        if self.sigma == 0:
            return [length] * batch
        return lognormal_lengths(batch, length, self.sigma, f"{seed}/{batch}/{length}")

    def longest(self, batch: int, length: int, seed: int) -> int:
        """Tokens of the longest sequence at a point."""
        if self.kind in REQUEST_KINDS:
            return self.input_tokens[1] + self.output_tokens[1]
        return max(self.contexts(batch, length, seed))


@dataclass(frozen=True)
class ProtocolConfig:
    """How carefully to measure. One cell is warm-up, then `windows` free-running windows of steps.

    A window holds `steps_per_window` steps, fewer where they would take longer than `window_ms`, at least one.
    Warm-up runs `warmup_min_steps`, then on until steady, at most `warmup_max_steps`. `verdict_tokens` positions are
    checked against the reference before a variant is timed. A cell (a load, its verdict included) that takes longer
    than its timeout is killed; no new round of a model starts once its share of `time_budget_s` is spent.

    `rounds` is the most. Where `target_ci` is given, a point ends after `min_rounds` or later, as soon as each of its
    verdicts is clear and each paired log speed-up known to +-`target_ci` (experiments/settling.py). A cell in
    which the GPU throttled or its clock drifted is measured again, up to `flagged_repeats` times. After each
    `restart_rounds` rounds all workers are replaced by fresh processes; null keeps them warm for the whole run.
    """

    rounds: int
    windows: int
    steps_per_window: int
    window_ms: float
    warmup_min_steps: int
    warmup_max_steps: int
    verdict_tokens: int
    load_timeout_s: float
    cell_timeout_s: float
    time_budget_s: float | None = None
    min_rounds: int = 3
    target_ci: float | None = None
    flagged_repeats: int = 0
    restart_rounds: int | None = None


@dataclass(frozen=True)
class ClusterConfig:
    """Where a sweep is measured: `none` is this process, `local` processes of this host, `slurm` jobs of one node each.

    The points are split into `shards` (None: one per group of GPUs here, one per model on Slurm), and each shard sees
    `gpus_per_node` GPUs. Shards on unlike machines are refused unless `mixed`. Without `wait` the command only submits
    them. The keys from `timeout_min` on are Slurm's; `sbatch` is for any other option of sbatch.
    """

    kind: str = "none"
    shards: int | None = None
    gpus_per_node: int = 1
    mixed: bool = False
    wait: bool = True
    timeout_min: int = 720
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment, checked: what `fusebench --cfg job` prints and a run's manifest keeps. `overrides` is how it
    was asked for."""

    name: str
    question: str
    models: list[str]
    variants: list[VariantConfig]
    workloads: list[WorkloadConfig]
    protocol: ProtocolConfig
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    seed: int = 0
    results_dir: str = "results"
    reports_dir: str = "reports"
    dry_run: bool = False
    resume: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    devices: list[int] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    @property
    def is_spread(self) -> bool:
        """Whether the sweep is split into shards, each a process of its own."""
        return self.cluster.kind != "none" or bool(self.devices)
