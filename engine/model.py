"""The forward pass: embedding, layers, head, written against the seams of `Ops`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batch import Batch, Context, LayerCache, Stream
from engine.config import ModelConfig
from engine.ops import Ops
from engine.ranges import layer as layer_range
from engine.weights import ModelWeights


@dataclass(frozen=True)
class Model:
    """Weights, as the variant prepared them, and the rotary tables [positions, D / 2] in fp32."""

    config: ModelConfig
    weights: ModelWeights
    cos_PD2: Tensor
    sin_PD2: Tensor


def hidden(model: Model, ops: Ops, batch: Batch, caches: list[LayerCache]) -> Stream:
    """Run all layers; the stream at the rows whose next token is wanted."""
    ctx = Context(model.config, batch, model.cos_PD2, model.sin_PD2)
    with layer_range("embed"):
        stream = Stream(ops.embed(batch.token_ids_T, model.weights.embed_VH), None)
    for i, (weights, cache) in enumerate(zip(model.weights.layers, caches, strict=True)):
        with layer_range(i):
            stream = ops.layer(weights, stream, cache, ctx)
    return stream if batch.logit_rows is None else select(stream, batch.logit_rows)


def select(stream: Stream, rows: Tensor) -> Stream:
    """The stream at some rows only."""
    parts = {name: part for name, part in stream._asdict().items() if part is not None}
    return stream._replace(**{name: torch.index_select(part, 0, rows) for name, part in parts.items()})


def logits(model: Model, ops: Ops, stream: Stream) -> Tensor:
    """[rows, V], in the model's dtype."""
    with layer_range("head"):
        return ops.logits(stream, model.weights.final_norm_H, model.weights.lm_head, model.config.norm_eps)


def next_token(model: Model, ops: Ops, stream: Stream) -> Tensor:
    """Greedy tokens, int64 [rows]."""
    with layer_range("head"):
        return ops.next_token(stream, model.weights.final_norm_H, model.weights.lm_head, model.config.norm_eps)
