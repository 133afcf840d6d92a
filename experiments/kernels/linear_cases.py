"""The fused linear layers beside cuBLAS (on a CPU: torch's product) and the kernels around it.

Shape suffixes: T rows, K inputs, N outputs. A shape is (N, K) of the weight as a model holds it: of gate and up
together, of the LM head. What a case times begins where the baseline's kernels begin and ends where what the next
linear layer reads is in memory:

    norm_linear    add, norm | linear               ->  one kernel
    linear_add     linear | add, norm               ->  one kernel, which leaves the sums of squares; 1/rms is deferred
    gate_up_silu   add, norm | linear | silu * up   ->  one kernel
    lm_head        add, norm | linear | argmax      ->  two kernels, no logits

These are their forms alone, with everything in one kernel; chained_cases.py has what runs behind `linear_add`.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.activation import silu_mul_reference, silu_mul_triton
from engine.kernels.argmax import argmax_reference, argmax_triton
from engine.kernels.norm import add_rms_norm_reference, add_rms_norm_triton
from experiments.kernels.case import EPS, Case, Deviation, How, Outputs, Shape, doubled
from experiments.kernels.figures import (
    MOST_RELATIVE_ERROR,
    largest_error,
    randn,
    relative_error,
    strided,
    tolerance,
    unit_roundoff,
)
from variants.kernels.gate_up_silu import norm_gate_up_silu_reference, norm_gate_up_silu_triton
from variants.kernels.linear_add import linear_add_reference, linear_add_triton
from variants.kernels.lm_head import norm_lm_head_argmax_reference, norm_lm_head_argmax_triton
from variants.kernels.norm_linear import norm_linear_reference, norm_linear_triton
from variants.kernels.normed_product_sm90 import hopper_takes_product, share_tiles
from variants.kernels.tile_table import choose_tile
from variants.kernels.tiles import MAX_SKINNY_ROWS, Tile

WEIGHT_SCALE = 0.02


@dataclass(frozen=True)
class LinearCase(Case):
    """x, the residual stream, a weight with its bias, and a norm's weight: ones where a fused kernel's is folded."""

    x_TK: Tensor
    residual: Tensor
    weight_NK: Tensor
    bias_N: Tensor | None
    gamma: Tensor

    ROWWISE: ClassVar[tuple[str, ...]] = ("x_TK", "residual")
    WEIGHTS: ClassVar[tuple[str, ...]] = ("weight_NK",)
    # Weight matrices that one program reads, whether K may be split, and whether the tensor memory accelerator brings
    # the tiles of a wide product.
    MATRICES: ClassVar[int] = 1
    CAN_SPLIT: ClassVar[bool] = False
    BY_TMA: ClassVar[bool] = True

    @classmethod
    def draw(
        cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device, plain: bool = False, seed: int = 0
    ) -> Self:
        """Not plain: a bias, and rows apart, so that a kernel that takes them for contiguous is found out."""
        n, k = shape
        width = n if cls.CAN_SPLIT else k
        seeds = range(7 * seed, 7 * seed + 4)
        x, residual = (
            randn(rows, w, dtype=dtype, seed=s, device=device) for w, s in ((k, seeds[0]), (width, seeds[1]))
        )
        if not plain:
            x, residual = strided(x), strided(residual)
        weight = randn(n, k, dtype=dtype, seed=seeds[2], device=device, scale=WEIGHT_SCALE)
        bias_N = None if plain else randn(n, dtype=dtype, seed=seeds[3], device=device)
        return cls(x, residual, weight, bias_N, torch.ones(width, dtype=dtype, device=device))

    @classmethod
    def blank(cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device) -> Self:
        """As `draw` with `plain`, but zeros: for launches whose results nobody reads. Takes no more than it holds."""
        n, k = shape
        width = n if cls.CAN_SPLIT else k
        sizes = ((rows, k), (rows, width), (n, k))
        x, residual, weight = (torch.zeros(size, dtype=dtype, device=device) for size in sizes)
        return cls(x, residual, weight, None, torch.ones(width, dtype=dtype, device=device))

    def bound(self) -> float:
        """One rounding, and an fp32 sum of K products."""
        return tolerance(self.dtype, sums=self.x_TK.shape[1])

    def dispatch_class(self, rows: int) -> Hashable:
        """The tile."""
        return choose_tile(self.OP, self.x_TK[:rows], self.weight_NK, self.MATRICES, self.CAN_SPLIT)

    @classmethod
    def tile_at(cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device) -> Tile:
        """The tile that a launch of so many rows at a shape would choose; nothing of that size is made."""
        n, k = shape
        x, weight = (torch.empty(1, dtype=dtype, device=device).expand(size) for size in ((rows, k), (n, k)))
        return choose_tile(cls.OP, x, weight, cls.MATRICES, cls.CAN_SPLIT)

    def given(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a kernel that norms is given: (x, residual, sums of squares of x per tile)."""
        return self.x_TK, self.residual, None

    def normed(self, how: How) -> tuple[Tensor, Tensor]:
        """(normed, the stream) by the baseline's kernel."""
        norm = add_rms_norm_triton if how == "triton" else add_rms_norm_reference
        return norm(self.x_TK, self.residual, self.gamma, EPS)


@dataclass(frozen=True)
class NormLinear(LinearCase):
    """RMSNorm and the linear layer after it."""

    OP: ClassVar[str] = "norm_linear"
    RUNG: ClassVar[str] = "norm_linear"
    SHAPES: ClassVar[tuple[Shape, ...]] = ((75, 136), (40, 99))
    REAL_SHAPES: ClassVar[tuple[Shape, ...]] = (
        (1128, 736), (513, 5125), (960, 576), (1152, 896), (1600, 960), (2048, 1536), (4608, 3584), (4096, 1024),
        (6144, 4096),
    )  # fmt: skip

    def dispatch_class(self, rows: int) -> Hashable:
        """The tile, or how many rows are cut up for Hopper."""
        x_TK = self.x_TK[:rows]
        if rows > MAX_SKINNY_ROWS and hopper_takes_product(x_TK, self.weight_NK):
            return "sm90", share_tiles(rows, x_TK.shape[1], silu=self.MATRICES == 2)
        return super().dispatch_class(rows)

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """(y, the stream)."""
        x, residual, partials = self.given()
        arguments = (x, residual, self.weight_NK, self.bias_N, EPS, partials, pdl)
        return norm_linear_triton(*arguments, tile) if how == "triton" else norm_linear_reference(*arguments)

    def launch_unfused(self, how: How) -> Any:
        """The same by two kernels."""
        normed, stream = self.normed(how)
        return F.linear(normed, self.weight_NK, self.bias_N), stream

    def oracle(self) -> Outputs:
        """From the rounded stream on, which both paths must have exactly."""
        d, stream = doubled(self), self.x_TK + self.residual
        return norm_linear_reference(stream.double(), None, d["weight_NK"], d["bias_N"], EPS)[0], stream

    def others(self, outputs: Outputs, oracle: Outputs) -> list[Deviation]:
        """The stream, to the bit."""
        return [Deviation("residual stream", relative_error(outputs[1], oracle[1]), 0.0)]


@dataclass(frozen=True)
class GateUpSilu(NormLinear):
    """RMSNorm, the gate and up projections and the SiLU product."""

    OP: ClassVar[str] = "gate_up_silu"
    RUNG: ClassVar[str] = "silu_epilogue"
    SHAPES: ClassVar[tuple[Shape, ...]] = ((150, 136), (80, 99))
    REAL_SHAPES: ClassVar[tuple[Shape, ...]] = (
        (2256, 736), (3072, 576), (9728, 896), (17920, 1536), (6144, 1024), (24576, 4096),
    )  # fmt: skip
    MATRICES: ClassVar[int] = 2

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """(h, the stream)."""
        x, residual, partials = self.given()
        arguments = (x, residual, self.weight_NK, self.bias_N, EPS, partials, pdl)
        if how == "twin":
            return norm_gate_up_silu_reference(*arguments)
        return norm_gate_up_silu_triton(*arguments, tile)

    def launch_unfused(self, how: How) -> Any:
        """The same by three kernels."""
        gate_up, stream = super().launch_unfused(how)
        return (silu_mul_triton if how == "triton" else silu_mul_reference)(gate_up), stream

    def oracle(self) -> Outputs:
        """From the rounded stream on."""
        d, stream = doubled(self), self.x_TK + self.residual
        return norm_gate_up_silu_reference(stream.double(), None, d["weight_NK"], d["bias_N"], EPS)[0], stream

    def bound(self) -> float:
        """Errors of gate and up both reach the product."""
        u = unit_roundoff(self.dtype)
        return min(u, MOST_RELATIVE_ERROR) + 3 * tolerance(torch.float32, sums=self.x_TK.shape[1])


@dataclass(frozen=True)
class LinearAdd(LinearCase):
    """A linear layer, the residual add after it and the sums of squares for the next norm."""

    OP: ClassVar[str] = "linear_add"
    RUNG: ClassVar[str] = "residual_epilogue"
    SHAPES: ClassVar[tuple[Shape, ...]] = ((75, 1100), (40, 99))
    REAL_SHAPES: ClassVar[tuple[Shape, ...]] = (
        (1128, 736), (513, 5125), (960, 960), (896, 4864), (1536, 8960), (1024, 3072), (4096, 12288),
    )  # fmt: skip
    CAN_SPLIT: ClassVar[bool] = True

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """(the stream, its sums of squares per tile)."""
        arguments = (self.x_TK, self.weight_NK, self.bias_N, self.residual, pdl)
        return linear_add_triton(*arguments, tile) if how == "triton" else linear_add_reference(*arguments)

    def launch_unfused(self, how: How) -> Any:
        """(the stream, normed for the next layer) by two kernels."""
        norm = add_rms_norm_triton if how == "triton" else add_rms_norm_reference
        y = F.linear(self.x_TK, self.weight_NK, self.bias_N)
        return norm(y, self.residual, self.gamma, EPS)[::-1]

    def oracle(self) -> Outputs:
        """In float64 throughout."""
        d = doubled(self)
        return linear_add_reference(d["x_TK"], d["weight_NK"], d["bias_N"], d["residual"])

    def others(self, outputs: Outputs, oracle: Outputs) -> list[Deviation]:
        """The sums, of exactly what was stored."""
        stream, partials = outputs
        error = relative_error(partials.sum(1), stream.double().square().sum(1))
        return [Deviation("sums of squares", error, tolerance(torch.float32, sums=stream.shape[1]))]


@dataclass(frozen=True)
class LmHead(LinearCase):
    """Final norm, LM head and greedy choice. Its error is a logit's, over the most that rounding could move one."""

    OP: ClassVar[str] = "lm_head"
    RUNG: ClassVar[str] = "lm_head"
    BY_TMA: ClassVar[bool] = False
    SHAPES: ClassVar[tuple[Shape, ...]] = ((150, 136),)
    REAL_SHAPES: ClassVar[tuple[Shape, ...]] = ((5125, 736), (49_152, 576), (151_936, 896), (151_936, 1024))

    @classmethod
    def draw(
        cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device, plain: bool = False, seed: int = 0
    ) -> Self:
        """The head has no bias, and its norm a weight of its own: a tied head cannot take it in."""
        case = super().draw(shape, rows, dtype, device, plain, seed)
        gamma = 1 + randn(shape[1], dtype=dtype, seed=7 * seed + 5, device=device, scale=0.1)
        return replace(case, bias_N=None, gamma=gamma)

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """(tokens, their logits)."""
        x, residual, _ = self.given()
        arguments = (x, residual, self.gamma, self.weight_NK, EPS, pdl)
        if how == "twin":
            return norm_lm_head_argmax_reference(*arguments)
        return norm_lm_head_argmax_triton(*arguments, tile)

    def launch_unfused(self, how: How) -> Any:
        """(tokens, all logits) by four kernels."""
        logits = F.linear(self.normed(how)[0], self.weight_NK)
        return (argmax_triton if how == "triton" else argmax_reference)(logits), logits

    def outputs(self, launched: Any) -> Outputs:
        """(the best logits, their tokens)."""
        tokens, best = launched
        return best if best.dim() == 1 else best.gather(1, tokens[:, None])[:, 0], tokens

    def oracle(self) -> Outputs:
        """(all logits, the most that rounding x * gamma may move one of a row: |a| |w| (Cauchy and Schwarz))."""
        d = doubled(self)
        stream = (self.x_TK + self.residual).double()
        a = stream * d["gamma"] * torch.rsqrt(stream.square().mean(1, keepdim=True) + EPS)
        return a @ d["weight_NK"].T, a.norm(dim=1) * d["weight_NK"].norm(dim=1).max()

    def error(self, outputs: Outputs, oracle: Outputs) -> float:
        """The worst row's."""
        return self._errors(outputs, oracle).max().item()

    def typical_error(self, outputs: Outputs, oracle: Outputs) -> float:
        """Root of the rows' mean square."""
        return self._errors(outputs, oracle).square().mean().sqrt().item()

    def _errors(self, outputs: Outputs, oracle: Outputs) -> Tensor:
        """Each row's: how wrong its logit is, or half of how far its token lies behind the best."""
        (best, tokens), (logits, size) = outputs, oracle
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        errors = torch.maximum((best.double() - chosen).abs(), (logits.max(1).values - chosen) / 2)
        # Rows of zeros have logits of zero, exactly.
        return errors / size.clamp(min=torch.finfo(torch.float32).tiny)

    def largest(self, outputs: Outputs, oracle: Outputs) -> float:
        """The largest error of a chosen logit."""
        return largest_error(outputs[0], oracle[0].gather(1, outputs[1][:, None])[:, 0])
