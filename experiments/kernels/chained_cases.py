"""The kernels that norm, in the form the fused engine runs them in: behind `linear_add`.

    norm_linear, gate_up_silu   x is the stream itself and comes with its sums of squares, one per tile of columns
    lm_head                     x is the stream itself; its squares are summed on the way, as alone

No residual is added and the stream is not written again. What is replaced is the same as alone: the baseline's kernels,
which begin at the summands.
"""

from functools import cached_property

import torch
from torch import Tensor

from experiments.kernel_floors import PARTIALS
from experiments.kernel_records import CHAINED
from experiments.kernels.figures import strided
from experiments.kernels.linear_cases import GateUpSilu, LinearCase, LmHead, NormLinear


class Chained(LinearCase):
    """Given what `linear_add` leaves behind."""

    FORM = CHAINED

    @cached_property
    def _left_behind(self) -> tuple[Tensor, Tensor]:
        stream = self.x_TK + self.residual
        # Rows of x that lie apart are there to find out what takes them for contiguous.
        return stream if self.x_TK.is_contiguous() else strided(stream), square_sums(stream)

    def given(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(the stream, nothing to add, its sums of squares)."""
        stream, partials = self._left_behind
        return stream, None, partials


class ChainedNormLinear(Chained, NormLinear):
    """A linear layer whose norm is all but done."""


class ChainedGateUpSilu(Chained, GateUpSilu):
    """Gate and up projections whose norm is all but done."""


class ChainedLmHead(Chained, LmHead):
    """The LM head of a stream without a pending add."""


def square_sums(x_TK: Tensor) -> Tensor:
    """[T, P] fp32: sums of squares of at most PARTIALS tiles of columns, as `linear_add` leaves them.

    Summed in float64: a row's do not depend on how many rows PyTorch sums at once.
    """
    width = -(-x_TK.shape[1] // PARTIALS)
    return torch.stack([part.square().sum(1) for part in x_TK.double().split(width, dim=1)], dim=1).float()
