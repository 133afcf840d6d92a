"""What a fused kernel is to the harness: inputs drawn once, run fused, unfused and in float64, and errors compared."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from experiments.kernel_records import ALONE, name_of
from experiments.kernels.figures import largest_error, relative_error
from variants.kernels.tiles import Tile

# `triton` launches kernels (compiled on a GPU, in Triton's interpreter elsewhere), `twin` runs plain PyTorch.
How = Literal["triton", "twin"]
Outputs = tuple[Tensor, ...]
Shape = tuple[int, ...]
EPS = 1e-6


@dataclass(frozen=True)
class Deviation:
    """An error, and the most it may be. NaN is within no bound."""

    what: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound

    @property
    def excess(self) -> float:
        """How bad: the error over its bound, infinite where it is NaN or the bound is 0."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound and not math.isnan(self.error) else math.inf


@dataclass(frozen=True)
class Case(ABC):
    """Inputs of one fused kernel. Of `Outputs` each row belongs to one row of the inputs; the first is gated most.

    `SHAPES` and `FEW_ROWS` are what Triton's interpreter can afford, `REAL_SHAPES` wait for a GPU. `ROWWISE` names the
    fields that have a row for each row of the outputs, `WEIGHTS` those that a model has once per layer. `RUNG` is the
    kernel's switch. `FORM` is kernel_records.ALONE or CHAINED. With `ENOUGH_VALUES` of the first output two typical
    errors can be compared.
    """

    OP: ClassVar[str]
    FORM: ClassVar[str] = ALONE
    RUNG: ClassVar[str]
    SHAPES: ClassVar[tuple[Shape, ...]]
    REAL_SHAPES: ClassVar[tuple[Shape, ...]]
    FEW_ROWS: ClassVar[tuple[int, ...]] = (1, 2, 3, 7, 17, 65)
    ROWWISE: ClassVar[tuple[str, ...]]
    WEIGHTS: ClassVar[tuple[str, ...]] = ()
    ENOUGH_VALUES: ClassVar[int] = 256

    @classmethod
    def name(cls) -> str:
        """The kernel, and its form where that is not its plain one."""
        return name_of(cls.OP, cls.FORM)

    @classmethod
    @abstractmethod
    def draw(
        cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device, plain: bool = False, seed: int = 0
    ) -> Self:
        """Seeded inputs: `plain` as in the models (no bias, rows side by side), else as awkward as they may come."""

    @abstractmethod
    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """Run the fused kernel; what it returns goes to `outputs`."""

    @abstractmethod
    def launch_unfused(self, how: How) -> Any:
        """Run the baseline's kernels that it replaces."""

    @abstractmethod
    def oracle(self) -> Outputs:
        """The same formula in float64."""

    @abstractmethod
    def bound(self) -> float:
        """The most that `error` may be."""

    @abstractmethod
    def dispatch_class(self, rows: int) -> Any:
        """What decides how that many rows are computed; rows of one class give the same bits."""

    def outputs(self, launched: Any) -> Outputs:
        """What was launched, a row of outputs for each row of inputs."""
        return (launched,) if isinstance(launched, Tensor) else tuple(launched)

    def error(self, outputs: Outputs, oracle: Outputs) -> float:
        """Relative Frobenius error of the first output."""
        return relative_error(outputs[0], oracle[0])

    def typical_error(self, outputs: Outputs, oracle: Outputs) -> float:
        """An error over all values, to be compared with another's: a worst value's would be luck."""
        return self.error(outputs, oracle)

    def largest(self, outputs: Outputs, oracle: Outputs) -> float:
        """Largest absolute error of the first output."""
        return largest_error(outputs[0], oracle[0])

    def others(self, outputs: Outputs, oracle: Outputs) -> list[Deviation]:
        """Errors of the other outputs."""
        return []

    def strays(self, before: Self) -> int:
        """Bytes written in place that differ from `before` and should not."""
        return 0

    def fresh(self) -> Self:
        """The same with whatever a launch writes in place as it was at first."""
        return self

    @property
    def num_rows(self) -> int:
        """Rows of the outputs."""
        return len(getattr(self, self.ROWWISE[0]))

    def take(self, rows: int) -> Self:
        """The first rows alone."""
        return self.part(0, rows)

    def part(self, low: int, high: int) -> Self:
        """Some rows alone."""
        return replace(self, **{name: getattr(self, name)[low:high] for name in self.ROWWISE})

    def clone(self) -> Self:
        """The same activations with weights of their own, at other addresses."""
        return replace(self, **{name: getattr(self, name).clone() for name in self.WEIGHTS})

    def with_special_rows(self) -> Self:
        """Row 0 all zeros; row 1 with a NaN, row 2 with an infinity and row 3 with an outlier of 1e4."""
        copies = {name: getattr(self, name).clone() for name in self.ROWWISE if getattr(self, name).is_floating_point()}
        for rows in copies.values():
            rows[:1] = 0
        first = copies[self.ROWWISE[0]]
        for row, value in ((1, float("nan")), (2, float("inf")), (3, 1e4)):
            first[row : row + 1, row] = value
        return replace(self, **copies)

    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(getattr(self, name).nbytes for name in self.WEIGHTS)

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        first: Tensor = getattr(self, self.ROWWISE[0])
        return first.dtype


def doubled(case: Case, but: Sequence[str] = ()) -> dict[str, Any]:
    """A case's fields in float64, except those named."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() and name not in but else value
        for name, value in values.items()
    }


def rows_of(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    """Some rows of every output."""
    return tuple(output[list(rows)] for output in outputs)
