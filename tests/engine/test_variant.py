"""What a variant says of itself."""

from dataclasses import dataclass

from torch import Tensor

from engine import BASELINE, Variant
from engine.ops import Ops


@dataclass(frozen=True)
class Changed(Ops):
    """One operation of the baseline's, one of its own, and whatever a dataclass adds."""

    scale: float

    def silu_mul(self, gate_up_TI2: Tensor) -> Tensor:
        """Another one."""
        return super().silu_mul(gate_up_TI2) * self.scale

    def helper(self) -> None:
        """Nothing that the baseline has."""


def test_replaced_names_the_baselines_operations_and_nothing_else() -> None:
    """Helpers and a dataclass's own methods replace nothing."""
    assert BASELINE.replaced == ()
    assert Variant("changed", Changed(2.0)).replaced == ("silu_mul",)
    assert Variant("changed", prompt_ops=Changed(2.0)).replaced == ("silu_mul",)
