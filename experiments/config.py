"""What an experiment is, as plain frozen values. `experiments.compose` makes them from YAML and overrides."""

from dataclasses import dataclass, field

from experiments.errors import UserError

WORKLOAD_KINDS = ("prefill", "decode", "offline")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")
WEIGHTS = ("auto", "random", "real")
BASELINE = "baseline"


@dataclass(frozen=True)
class RuntimeConfig:
    """How a variant launches its work: CUDA graphs, torch.compile, programmatic dependent launch."""

    cuda_graphs: bool = True
    compile: bool = False
    pdl: bool = False


@dataclass(frozen=True)
class VariantConfig:
    """One way to differ from the baseline: `variants/<kind>.py` with its rungs switched on or off."""

    name: str
    kind: str
    switches: dict[str, bool] = field(default_factory=dict)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass(frozen=True)
class WorkloadConfig:
    """Where an engine is measured: the product of batches and lengths, or exactly `points` where given.

    `length` is the prompt of a prefill, the context of a decode step. For `offline` a batch is a number of requests,
    lengths are [0], and each request's prompt and answer are drawn from the two token ranges, ends included.
    Where `models` is not empty, only those models run it.
    """

    name: str
    kind: str
    batches: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    points: list[list[int]] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

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
class ExperimentConfig:
    """A whole experiment, checked: what `fusebench --cfg job` prints and a run's manifest keeps."""

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
