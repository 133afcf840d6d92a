"""Chains of dependent launches of each kernel, for the gate on programmatic dependent launch.

Under PDL a kernel starts while the one before it still runs; what it must not read too early is what that one writes.
So every chain feeds outputs to inputs, through weights of its own for each link. `width` is that of the stream.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from experiments.kernels.attention_cases import Attention, QkvPost
from experiments.kernels.case import EPS, Case, Shape
from experiments.kernels.chained_cases import Chained, ChainedLmHead
from experiments.kernels.figures import randn
from experiments.kernels.linear_cases import GateUpSilu, LinearAdd, LmHead, NormLinear
from variants.kernels.gate_up_silu import norm_gate_up_silu_triton
from variants.kernels.lm_head import norm_lm_head_argmax_triton
from variants.kernels.norm_linear import norm_linear_triton

C = TypeVar("C", bound=Case)
# A chain's launches with or without PDL, and the tensor to overwrite for fresh inputs.
Chain = tuple[Callable[[bool], Tensor], Tensor]
LINKS = 4


def chain_of(kind: type[Case], rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """The chain of a kernel in one of its forms."""
    if issubclass(kind, NormLinear):
        return (_norms_behind_adds if issubclass(kind, Chained) else _norms)(kind, rows, width, dtype, device)
    if issubclass(kind, ChainedLmHead):
        return _lm_head_behind_add(rows, width, dtype, device)
    chains = {"linear_add": _linear_add, "lm_head": _lm_head, "qkv_post": _qkv_post, "attention": _attention}
    return chains[kind.OP](rows, width, dtype, device)


def _links(kind: type[C], shape: Shape, rows: int, dtype: torch.dtype, device: torch.device) -> list[C]:
    return [kind.draw(shape, rows, dtype, device, plain=True, seed=10 * seed) for seed in range(LINKS)]


def _norms(kind: type[NormLinear], rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """y and the stream go from link to link."""
    links = _links(kind, (kind.MATRICES * width, width), rows, dtype, device)

    def launch(pdl: bool) -> Tensor:
        y, stream = links[0].x_TK, links[0].residual
        for link in links:
            y, stream = replace(link, x_TK=y, residual=stream).launch("triton", pdl)
        return torch.stack((y, stream))

    return launch, links[0].x_TK


def _norms_behind_adds(
    kind: type[NormLinear], rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> Chain:
    """y goes from link to link through `linear_add`, whose sums of squares norm it."""
    adds = _links(LinearAdd, (width, width), rows, dtype, device)
    links = _links(kind, (kind.MATRICES * width, width), rows, dtype, device)
    norms = norm_gate_up_silu_triton if issubclass(kind, GateUpSilu) else norm_linear_triton

    def launch(pdl: bool) -> Tensor:
        y = adds[0].x_TK
        for add, link in zip(adds, links, strict=True):
            stream, partials = replace(add, x_TK=y, residual=y).launch("triton", pdl)
            y, _ = norms(stream, None, link.weight_NK, None, EPS, partials, pdl)
        return torch.stack((y, stream))

    return launch, adds[0].x_TK


def _linear_add(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """Each link's sums of squares norm a product after it, as in a layer."""
    links = _links(LinearAdd, (width, width), rows, dtype, device)

    def launch(pdl: bool) -> Tensor:
        y = links[0].x_TK
        for link, after in zip(links[::2], links[1::2], strict=True):
            y, partials = replace(link, x_TK=y, residual=y).launch("triton", pdl)
            y, _ = norm_linear_triton(y, None, after.weight_NK, None, EPS, partials, pdl)
        return y

    return launch, links[0].x_TK


def _lm_head(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """The chosen token is embedded and answered again."""
    case = LmHead.draw((4 * width, width), rows, dtype, device, plain=True)
    embed_VK = randn(4 * width, width, dtype=dtype, seed=9, device=device)

    def launch(pdl: bool) -> Tensor:
        y = case.x_TK
        for _ in range(LINKS):
            tokens, best = replace(case, x_TK=y).launch("triton", pdl)
            y = embed_VK[tokens]
        return torch.stack((tokens.double(), best.double()))

    return launch, case.x_TK


def _lm_head_behind_add(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """As `_lm_head`, with a `linear_add` between the embedding and the head."""
    add = LinearAdd.draw((width, width), rows, dtype, device, plain=True, seed=1)
    head = LmHead.draw((4 * width, width), rows, dtype, device, plain=True)
    embed_VK = randn(4 * width, width, dtype=dtype, seed=9, device=device)

    def launch(pdl: bool) -> Tensor:
        y = add.x_TK
        for _ in range(LINKS):
            stream, _ = replace(add, x_TK=y).launch("triton", pdl)
            tokens, best = norm_lm_head_argmax_triton(stream, None, head.gamma, head.weight_NK, EPS, pdl)
            y = embed_VK[tokens]
        return torch.stack((tokens.double(), best.double()))

    return launch, add.x_TK


def _qkv_post(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """One launch between the kernels that make its inputs new and those that read its outputs."""
    case = QkvPost.draw((width // 64, width // 128, 64), rows, dtype, device, plain=True)

    def launch(pdl: bool) -> Tensor:
        q = case.launch("triton", pdl)
        return torch.cat([part.nan_to_num().flatten() for part in (q, case.k_cache, case.v_cache)])

    return launch, case.qkv_TO


def _attention(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Chain:
    """Attention, and a projection of its output to the next layer's packed QKV, which is twice as wide."""
    layers = _links(Attention, (width // 64, width // 128, 64), rows, dtype, device)
    projections = _links(LinearAdd, (2 * width, width), rows, dtype, device)
    first = layers[0].qkv_TO

    def launch(pdl: bool) -> Tensor:
        qkv, seen = first, []
        for layer, projection in zip(layers, projections, strict=True):
            o = replace(layer, qkv_TO=qkv).launch("triton", pdl)
            qkv, _ = replace(projection, x_TK=o.flatten(1), residual=first).launch("triton", pdl)
            seen += [o, layer.k_cache, layer.v_cache]
        return torch.cat([part.nan_to_num().flatten() for part in seen])

    return launch, first
