"""RMSNorm inside the Linear after it and nothing else: the question in its purest form."""

from collections.abc import Mapping

from torch import Tensor

from engine import Runtime, Variant
from engine.batch import Stream
from engine.ops import Ops
from engine.ranges import op, rung
from engine.weights import Linear
from variants.folding import fold_layers
from variants.kernels.norm_linear import norm_linear

SWITCHES: dict[str, bool] = {}
KERNELS = {"norm_linear": "_norm_linear_kernel*"}


class NormLinearOps(Ops):
    """Residual add, sum of squares, linear layer and row scale in one kernel."""

    @op
    def norm_linear(self, stream: Stream, weight_H: Tensor | None, linear: Linear, eps: float) -> tuple[Tensor, Tensor]:
        """The fused kernel wherever gamma is folded; the final norm keeps its own weight and kernels."""
        if weight_H is not None:
            return super().norm_linear(stream, weight_H, linear, eps)
        rung("norm_linear")
        return norm_linear(stream.delta_TH, stream.residual_TH, linear.weight_NK, linear.bias_N, eps)


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The baseline with its RMSNorm+Linear pairs fused."""
    return Variant(name, NormLinearOps(), fold_layers, runtime, switches, KERNELS)
