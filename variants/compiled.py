"""The baseline through torch.compile: the honest second baseline, what a compiler fuses unasked.

Each layer is compiled as a whole, for the exact shapes it is given; attention and the KV store are opaque to the
compiler, as they are in vLLM.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from engine import Runtime, Variant
from engine.batch import Batch, Context, LayerCache, Stream
from engine.kernels.activation import silu_mul_reference
from engine.kernels.norm import add_rms_norm_reference, rms_norm_reference
from engine.kernels.rope import rope_reference
from engine.ops import Ops
from engine.weights import LayerWeights

SWITCHES: dict[str, bool] = {}


class CompiledOps(Ops):
    """Plain PyTorch where the compiler can see it, the baseline's kernels where it cannot."""

    rms_norm = staticmethod(rms_norm_reference)
    add_rms_norm = staticmethod(add_rms_norm_reference)
    silu_mul = staticmethod(silu_mul_reference)

    def rope(self, q_TND: Tensor, k_TMD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by their positions."""
        return rope_reference(q_TND, k_TMD, ctx.batch.positions_T, ctx.cos_PD2, ctx.sin_PD2)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def store_kv(self, k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, batch: Batch) -> None:
        """The baseline's kernel, outside the compiled graph."""
        super().store_kv(k_TMD, v_TMD, cache, batch)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attention(self, q_TND: Tensor, cache: LayerCache, ctx: Context) -> Tensor:
        """The baseline's kernels, outside the compiled graph."""
        return super().attention(q_TND, cache, ctx)

    @cached_property
    def compiled_layer(self) -> Any:
        """One compilation per shape; weights and pages are arguments, so all layers share it."""
        return torch.compile(super().layer, dynamic=False)

    def layer(self, layer: LayerWeights, stream: Stream, cache: LayerCache, ctx: Context) -> Stream:
        """The compiled layer on a GPU; a CPU, whose cells claim no speed, runs it uncompiled."""
        run = self.compiled_layer if ctx.batch.token_ids_T.is_cuda else super().layer
        result: Stream = run(layer, stream, cache, ctx)
        return result


def build(name: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The baseline's forward pass, compiled by layer."""
    return Variant(name, CompiledOps(), runtime=runtime, switches=switches)
