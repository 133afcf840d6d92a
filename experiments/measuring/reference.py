"""The oracle: a decoder's forward pass in fp32, written down once more without paging, batching, kernels or variants.

Weights are upcast layer by layer, so a model that fits in bf16 can be checked where it would not fit in fp32.
Shape suffixes: T tokens, V vocabulary, H hidden size, N query heads, M key heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config import ModelConfig
from engine.loading import LoadedModel
from engine.rope import rope_tables
from engine.weights import LayerWeights, Linear


def reference_logits(loaded: LoadedModel, tokens_T: Tensor) -> Tensor:
    """fp32 logits [T, V] of one sequence, every position attending to itself and what came before."""
    config, weights = loaded.config, loaded.weights
    cos_PD2, sin_PD2 = rope_tables(config, len(tokens_T), tokens_T.device)
    x_TH = weights.embed_VH[tokens_T].float()
    # tf32 would be no oracle.
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for layer in weights.layers:
            x_TH = x_TH + _attention(config, layer, _norm(x_TH, layer.attn_norm_H, config.norm_eps), cos_PD2, sin_PD2)
            gate, up = _linear(_norm(x_TH, layer.mlp_norm_H, config.norm_eps), layer.gate_up).chunk(2, dim=-1)
            x_TH = x_TH + _linear(F.silu(gate) * up, layer.down)
        return _linear(_norm(x_TH, weights.final_norm_H, config.norm_eps), weights.lm_head)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight.float()


def _linear(x: Tensor, linear: Linear) -> Tensor:
    return F.linear(x, linear.weight_NK.float(), None if linear.bias_N is None else linear.bias_N.float())


def _rotate(x_TND: Tensor, cos_TD2: Tensor, sin_TD2: Tensor) -> Tensor:
    first, second = x_TND.chunk(2, dim=-1)
    cos, sin = cos_TD2[:, None], sin_TD2[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attention(config: ModelConfig, layer: LayerWeights, x_TH: Tensor, cos_TD2: Tensor, sin_TD2: Tensor) -> Tensor:
    sizes = (config.q_size, config.kv_size, config.kv_size)
    q, k, v = (part.unflatten(-1, (-1, config.head_dim)) for part in _linear(x_TH, layer.qkv).split(sizes, dim=-1))
    if config.qk_norm:
        q, k = _norm(q, layer.q_norm_D, config.norm_eps), _norm(k, layer.k_norm_D, config.norm_eps)
    q, k = _rotate(q, cos_TD2, sin_TD2), _rotate(k, cos_TD2, sin_TD2)
    k, v = (part.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1) for part in (k, v))
    scores_NTT = torch.einsum("tnd,snd->nts", q, k) * config.head_dim**-0.5
    position = torch.arange(len(x_TH), device=x_TH.device)
    distance = position[:, None] - position[None, :]
    window = config.sliding_window or len(x_TH)
    visible = (distance >= 0) & (distance < window)
    probs_NTT = scores_NTT.masked_fill(~visible, -torch.inf).softmax(-1)
    return _linear(torch.einsum("nts,snd->tnd", probs_NTT, v).flatten(1), layer.o)
