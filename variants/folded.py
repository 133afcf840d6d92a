"""The algebra alone, in plain PyTorch: gamma folded into the weights, 1/rms applied to the linear layer's output."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import Runtime, Variant
from engine.batch import Stream
from engine.ops import Ops
from engine.ranges import op
from engine.weights import Linear
from variants.folding import fold_layers

SWITCHES: dict[str, bool] = {}


class FoldedOps(Ops):
    """Norms without weight become a row scale after the linear layer; norms with one stay as they are."""

    @op
    def norm_linear(self, stream: Stream, weight_H: Tensor | None, linear: Linear, eps: float) -> tuple[Tensor, Tensor]:
        """(linear(x) / rms(x), x) with x the residual stream; the product stays in fp32 until it is scaled."""
        if weight_H is not None:
            return super().norm_linear(stream, weight_H, linear, eps)
        x = stream.delta_TH if stream.residual_TH is None else stream.delta_TH + stream.residual_TH
        inverse_rms_T1 = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        y = fp32_matmul(x, linear.weight_NK) * inverse_rms_T1
        return (y if linear.bias_N is None else y + linear.bias_N).to(x.dtype), x


def fp32_matmul(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """x @ weight.T in fp32. A product rounded to bf16 before it is scaled loses what folding preserved."""
    if x_TK.is_cuda and x_TK.dtype != torch.float32:
        return torch.mm(x_TK, weight_NK.t(), out_dtype=torch.float32)
    return F.linear(x_TK.float(), weight_NK.float())


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The baseline with deferred norms."""
    return Variant(name, FoldedOps(), fold_layers, runtime, switches)
