"""Choosing tokens from logits: repetition penalty, temperature, top-k, top-p, min-p, in this order.

The noise is a hash of (request seed, position, token id) and nothing else, so a request draws the same tokens alone, in
any batch, after a preemption, on any device. Shape suffixes: B rows, V vocabulary, L tokens of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.kernels.argmax import argmax
from engine.request import SamplingParams, TokenLogprobs

_MASK = 0xFFFFFFFF


def on_device(values: Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of host values; the host does not wait for the copy, which lies behind the whole step."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


@dataclass(frozen=True)
class SamplingBatch:
    """The rows' parameters on the device, [B] each. Seeds and positions are int64, the rest fp32 or int64."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor

    @classmethod
    def of(
        cls, params: Sequence[SamplingParams], seeds: Sequence[int], positions: Sequence[int], device: torch.device
    ) -> "SamplingBatch":
        """Collect rows; `positions` are those of the tokens to be drawn."""
        floats = [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]]
        temperature, top_p, min_p = on_device(np.array(floats, np.float32), device)
        top_k, seed, position = on_device(np.array([[p.top_k for p in params], seeds, positions], np.int64), device)
        return cls(temperature, top_k, top_p, min_p, seed, position)


def _mix(x: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 on int64 lanes (products of two 32-bit values wrap; the mask drops that)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def uniform(seed_B: Tensor, position_B: Tensor, num_tokens: int) -> Tensor:
    """fp32 [B, num_tokens] in (0, 1), a pure function of its arguments."""
    key_B = _mix(_mix(seed_B & _MASK) ^ _mix((seed_B >> 32) & _MASK) * 31 + position_B * 0x9E3779B1 & _MASK)
    token_V = torch.arange(num_tokens, device=seed_B.device)
    bits = _mix(_mix(key_B[:, None] ^ token_V) + key_B[:, None] & _MASK)
    # 23 bits, centred in their cell: exact in fp32, never 0 or 1.
    return ((bits >> 9).float() + 0.5) * 2.0**-23


def penalise(logits_BV: Tensor, seen_BL: Tensor, penalty_B: Tensor) -> Tensor:
    """Logits of tokens in `seen_BL` (int64, repeats allowed) divided by the penalty, or multiplied where negative.

    As in CTRL (arXiv 1909.05858) with the sign minded, as transformers does it.
    """
    scores = logits_BV.gather(1, seen_BL)
    penalty_B1 = penalty_B[:, None]
    return logits_BV.scatter(1, seen_BL, torch.where(scores > 0, scores / penalty_B1, scores * penalty_B1))


def keep_mask(logits_BV: Tensor, params: Sequence[SamplingParams], batch: SamplingBatch) -> Tensor:
    """Which tokens top-k, top-p and min-p leave, bool [B, V]. Ties with the k-th stay in, the best token always."""
    # min-p is a distance from the best token, whatever the others leave: alone it needs no order. NaN is not too far.
    keep_BV = ~(logits_BV - logits_BV.amax(-1, keepdim=True) < batch.min_p.log()[:, None])
    if any(p.top_k or p.top_p < 1 for p in params):
        keep_BV &= _likeliest(logits_BV, batch)
    return keep_BV


def _likeliest(logits_BV: Tensor, batch: SamplingBatch) -> Tensor:
    """What top-k and then top-p leave, bool [B, V]."""
    sorted_BV, order_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
    probs_BV = torch.softmax(sorted_BV, dim=-1)
    num_tokens = logits_BV.shape[-1]
    k_B = torch.where(batch.top_k > 0, batch.top_k.clamp(max=num_tokens), num_tokens)
    kth_B1 = sorted_BV.gather(1, (k_B - 1).unsqueeze(1))
    keep = sorted_BV >= kth_B1
    # A token stays while the mass before it is short of top_p.
    kept_probs = torch.where(keep, probs_BV, 0.0)
    kept_probs = kept_probs / kept_probs.sum(-1, keepdim=True)
    before = kept_probs.cumsum(-1) - kept_probs
    keep &= (before < batch.top_p[:, None]) | (batch.top_p[:, None] >= 1)
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter_(1, order_BV, keep)


def sample(logits_BV: Tensor, params: Sequence[SamplingParams], batch: SamplingBatch) -> Tensor:
    """Tokens int64 [B]: argmax for greedy rows, Gumbel-max over the kept tokens for the others."""
    scores = logits_BV.float()
    if all(p.greedy for p in params):
        return argmax(scores)
    greedy_B1 = (batch.temperature == 0)[:, None]
    scaled = scores / torch.where(greedy_B1, 1.0, batch.temperature[:, None].clamp(min=1e-30))
    if any(p.top_k or p.top_p < 1 or p.min_p for p in params):
        scaled = scaled.masked_fill(~keep_mask(scaled, params, batch), -torch.inf)
    gumbel = -torch.log(-torch.log(uniform(batch.seed, batch.position, scores.shape[-1])))
    return argmax(torch.where(greedy_B1, scores, scaled + gumbel))


def token_logprobs(logits_BV: Tensor, tokens_B: Tensor, params: Sequence[SamplingParams]) -> list[TokenLogprobs | None]:
    """Log-probabilities under the unscaled model, for the rows that ask for them. Synchronises."""
    logprobs = torch.log_softmax(logits_BV.float(), dim=-1)
    most = max((p.logprobs or 0 for p in params), default=0)
    values, ids = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(1, tokens_B.unsqueeze(1)).squeeze(1).tolist()
    rows = zip(params, chosen, ids.tolist(), values.tolist(), strict=True)
    return [
        None if p.logprobs is None else TokenLogprobs(value, tuple(zip(i, v, strict=True))[: p.logprobs])
        for p, value, i, v in rows
    ]
