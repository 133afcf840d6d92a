"""What `kernels`, `validate`, `sanitize` and `tune` keep: plain values, one JSON file in a folder per run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from experiments import plain
from experiments.durable import Damaged, read_json, write_json
from experiments.environment import Code, Environment, code, machine, run_id_of
from experiments.errors import UserError
from experiments.records import Status

SCHEMA = 1
KERNELS, VALIDATE, SANITIZE = "kernels", "validate", "sanitize"
FUSED, UNFUSED, COMPILED = "fused", "unfused", "compiled"
# The gate of what raised or died.
RUNS = "every gate runs"
# The section of `sanitize` that races on purpose.
PLANTED = "planted"
# A kernel in itself, and as it runs behind `linear_add`, which has added the residual and summed the squares.
ALONE, CHAINED = "alone", "chained"

R = TypeVar("R")


@dataclass(frozen=True)
class Stamp:
    """When, where and from which code something was measured, and how it was asked for."""

    run_id: str
    created: str
    command: str
    device: str
    code: Code
    machine: Environment

    @property
    def gpu(self) -> str:
        """The GPU's name, empty where the twins ran."""
        return self.machine.gpu.name if self.machine.gpu and self.device == "cuda" else ""

    @property
    def figures(self) -> dict[str, str]:
        """What stands at the head of figures that a document cites."""
        packages = self.machine.packages
        return {
            "gpu": self.gpu,
            "date": self.created[:10],
            "torch": packages.get("torch", ""),
            "triton": packages.get("triton", ""),
            "commit": self.code.commit,
            "by": f"`{self.command}`",
        }


@dataclass(frozen=True)
class KernelRow:
    """One contender at one place: a kernel, the shape that a model has it at, a number of rows, a state of L2.

    `site` says where in the model, `shape` is (N, K), or (query heads, key heads, head dim). `cache` is `cold` (weights
    from memory) or `hot`. `contender` is `fused`, `unfused` (the baseline's kernels) or `compiled` (torch.compile of
    the formula). `error` is the relative error against float64 (lm_head: of a logit, over the most that rounding could
    move one), `bound` the most allowed: without an error there are no samples. `samples_us` are microseconds of one
    launch, one per repeat, in the order taken. `floor_us` is the roofline: least time for `bytes` and `flop`.
    `form` is `alone` or `chained`; runs from before there were two have it alone.
    """

    model: str
    op: str
    site: str
    shape: tuple[int, ...]
    rows: int
    dtype: str
    cache: str
    contender: str
    kernels: str
    status: Status
    reason: str = ""
    error: float | None = None
    bound: float | None = None
    copies: int = 0
    samples_us: tuple[float, ...] = ()
    bytes: float = 0.0
    flop: float = 0.0
    floor_us: float | None = None
    form: str = ALONE


@dataclass(frozen=True)
class KernelRun:
    """A run of `fusebench kernels`.

    `other_processes` is how many were on the GPU beside it, at most, as a place ended; None: not known.
    """

    schema: int
    stamp: Stamp
    pdl: bool
    ceilings: dict[str, float] = field(default_factory=dict)
    rows: tuple[KernelRow, ...] = ()
    other_processes: int | None = None


def merged(runs: Sequence[KernelRun]) -> KernelRun:
    """Several runs of `fusebench kernels` as one; a place that two of them have is the later's.

    UserError where they are not of one code on one kind of machine.
    """
    first, *others = runs
    for run in others:
        for what, mine, theirs in (
            ("commits", first.stamp.code, run.stamp.code),
            ("GPUs", first.stamp.gpu, run.stamp.gpu),
            ("settings of pdl", first.pdl, run.pdl),
        ):
            if mine != theirs:
                raise UserError(f"{first.stamp.run_id} and {run.stamp.run_id} are of two {what}: they are not merged")
    stamp = replace(
        first.stamp,
        run_id=" and ".join(run.stamp.run_id for run in runs),
        command="; ".join(dict.fromkeys(run.stamp.command for run in runs)),
    )
    rates = {name: max(run.ceilings[name] for run in runs if name in run.ceilings) for name in first.ceilings}
    rows = {_place(row): row for run in runs for row in run.rows}
    seen = [run.other_processes for run in runs]
    most = None if None in seen else max(filter(None, seen), default=0)
    return replace(first, stamp=stamp, ceilings=rates, rows=tuple(rows.values()), other_processes=most)


def _place(row: KernelRow) -> tuple[object, ...]:
    return row.model, row.op, row.form, row.site, row.rows, row.dtype, row.cache, row.contender


class GateStatus(StrEnum):
    """How a gate went; `shown` figures have no bound."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    SHOWN = "shown"


@dataclass(frozen=True)
class GateRow:
    """One gate of one kernel (or variant) in one dtype, over `checked` places.

    `figure` is the worst of them, `where` its place and `bound` the most it may be there; `unfused` is what the
    baseline's kernels have there. `where` is the reason where a gate was skipped.
    """

    subject: str
    kernels: str
    dtype: str
    gate: str
    status: GateStatus
    where: str
    figure: float | None = None
    bound: float | None = None
    unfused: float | None = None
    checked: int = 0


@dataclass(frozen=True)
class GateRun:
    """A run of `fusebench validate`."""

    schema: int
    stamp: Stamp
    rows: tuple[GateRow, ...] = ()


@dataclass(frozen=True)
class Watched:
    """A section of launches under a tool of compute-sanitizer.

    `launches` are of each kernel by name. `errors` is None where it did not end, or the tool gave no summary; `said`
    are the first lines of what it said, `reported` how many of its reports name which kernel.
    """

    tool: str
    section: str
    launches: dict[str, int]
    errors: int | None = None
    warnings: int = 0
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    reported: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it was watched to its end."""
        return self.errors is not None

    @property
    def clean(self) -> bool:
        """Whether it ended and nothing was found."""
        return self.errors == 0

    @property
    def as_it_should(self) -> bool:
        """Whether it is clean; of planted races, whether those that the tool is for were found."""
        return bool(self.errors) if (self.tool, self.section) == ("racecheck", PLANTED) else self.clean


@dataclass(frozen=True)
class SanitizeRun:
    """A run of `fusebench sanitize`; `version` is compute-sanitizer's."""

    schema: int
    stamp: Stamp
    version: str
    rows: tuple[Watched, ...] = ()


def name_of(op: str, form: str) -> str:
    """A kernel's name, with its form where that is not its plain one."""
    return op if form == ALONE else f"{op} {form}"


def new_stamp(command: str, device: str) -> Stamp:
    """Of a run that starts now."""
    now, source = datetime.now(UTC), code()
    return Stamp(run_id_of(now, source), now.isoformat(timespec="seconds"), command, device, source, machine())


def write_run(folder: Path, kind: str, run: KernelRun | GateRun | SanitizeRun) -> Path:
    """Replace <folder>/<kind>.json, whole or not at all."""
    path = folder / f"{kind}.json"
    write_json(path, plain.encode(run), indent=1)
    return path


def read_run(kind: type[R], file: Path) -> R:
    """The run of such a file; UserError where it is damaged or of another version."""
    try:
        content = read_json(file)
        if isinstance(content, dict) and content.get("schema") != SCHEMA:
            raise Damaged(f"it has schema {content.get('schema')}, this version reads schema {SCHEMA}")
        return plain.decode(kind, content)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be used: {error}") from None
