"""Ops and regions on their own: what they compute, what they leave alone, and their ranges.

Shape suffixes: T tokens, H hidden size, D head dim.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine import ranges
from engine.batch import Batch, LayerCache, Stream
from engine.ops import Ops
from engine.variant import BASELINE, Variant
from engine.weights import Linear
from tests.engine.steps import context_of, empty_cache, noise, prefill_batch
from tests.engine.tiny import CONFIG, GREEDY, PROMPTS, expected, serve, tiny_engine, tiny_model
from tests.shipped import VARIANTS

OPS = Ops()
REGIONS = {"norm", "norm_linear", "qkv_post", "attention", "mlp", "layer", "logits", "next_token"}


def test_every_op_has_a_range_and_only_regions_have_none() -> None:
    """A new op without one would vanish from every trace."""
    methods = dict(inspect.getmembers(Ops, inspect.isfunction))
    without = {name for name, method in methods.items() if not getattr(method, "is_op", False)}
    assert without == REGIONS


def test_linear_adds_its_bias() -> None:
    """Odd sizes, with and without."""
    x, weight, bias = noise(3, 7), noise(5, 7), noise(5)
    torch.testing.assert_close(OPS.linear(x, Linear(weight, bias)), x @ weight.T + bias)
    torch.testing.assert_close(OPS.linear(x, Linear(weight)), x @ weight.T)


def test_norm_adds_what_is_pending() -> None:
    """(normed, residual) of a stream with and without a pending delta, in fp32, inputs untouched."""
    delta, residual, weight = noise(4, 24), noise(4, 24, seed=1), noise(24)
    copies = delta.clone(), residual.clone()
    for stream, total in ((Stream(delta, None), delta), (Stream(delta, residual), delta + residual)):
        normed, carried = OPS.norm(stream, weight, 1e-5)
        torch.testing.assert_close(carried, total)
        torch.testing.assert_close(normed, F.rms_norm(total, (24,), weight, 1e-5))
    assert torch.equal(delta, copies[0])
    assert torch.equal(residual, copies[1])


def test_silu_mul_takes_the_gate_first() -> None:
    """The packed projection holds gate, then up."""
    gate, up = noise(3, 5), noise(3, 5, seed=1)
    torch.testing.assert_close(OPS.silu_mul(torch.cat((gate, up), dim=1)), F.silu(gate) * up)


def test_argmax_takes_the_first_of_equals() -> None:
    """As every reference does."""
    assert OPS.argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])).tolist() == [1, 0]


def test_keys_and_values_land_in_their_slots() -> None:
    """Keys normed and rotated, values as they are, nothing anywhere else."""
    batch, cache = prefill_batch([5, 3]), empty_cache()
    layer = tiny_model().weights.layers[0]
    qkv = noise(8, CONFIG.qkv_size)
    q = OPS.qkv_post(qkv, layer, cache, context_of(batch))
    assert q.shape == (8, CONFIG.num_heads, CONFIG.head_dim)
    stored = cache.v.flatten(0, 1)[batch.slots_T.long()]
    torch.testing.assert_close(stored.flatten(1), qkv[:, CONFIG.q_size + CONFIG.kv_size :])
    assert int((~cache.k.isnan()).sum()) == 8 * CONFIG.kv_size
    # Position 0 is not rotated, so its key is the normed one.
    assert layer.k_norm_D is not None
    first = F.rms_norm(qkv[0, CONFIG.q_size : CONFIG.q_size + CONFIG.kv_size], (8,), layer.k_norm_D, CONFIG.norm_eps)
    torch.testing.assert_close(cache.k[0, 0].flatten(), first)


def test_mixed_attention_equals_its_parts() -> None:
    """Decode rows first, then chunks: each as it would be in a step of its own."""
    cache = LayerCache(noise(16, 16, 1, 8), noise(16, 16, 1, 8, seed=1))
    mixed, q = prefill_batch([4, 6], num_decode=2), noise(12, 3, 8)
    together = OPS.attention(q, cache, context_of(mixed))
    tables, lens = mixed.block_tables_BP, mixed.context_lens_B
    decodes = Batch(mixed.token_ids_T[:2], mixed.positions_T[:2], mixed.slots_T[:2], tables[:2], lens[:2], 2)
    chunks = Batch(
        mixed.token_ids_T[2:], mixed.positions_T[2:], mixed.slots_T[2:], tables[2:], lens[2:], 0, mixed.cu_seqlens_B1, 6
    )
    assert together.shape == (12, CONFIG.q_size)
    torch.testing.assert_close(together[:2], OPS.attention(q[:2], cache, context_of(decodes)))
    torch.testing.assert_close(together[2:], OPS.attention(q[2:], cache, context_of(chunks)))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the ranges pushed inside the block."""
    names: list[str] = []

    @contextmanager
    def span(name: str) -> Iterator[None]:
        names.append(name)
        yield

    monkeypatch.setattr(ranges, "span", span)
    yield names
    monkeypatch.undo()


@pytest.mark.parametrize("variant", [BASELINE, *VARIANTS.values()], ids=lambda variant: variant.name)
def test_details_name_layers_and_ops(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside `detail` every layer has a range with ops in it, outside none has; tokens are the same."""
    with recorded(monkeypatch) as names:
        serve(tiny_engine(variant), PROMPTS[:2], GREEDY)
        assert not any(name.startswith(("layer/", "op/")) for name in names)
        with ranges.detail():
            assert serve(tiny_engine(variant), PROMPTS[:2], GREEDY) == expected(PROMPTS[:2])
    layers = {name for name in names if name.startswith("layer/")}
    assert layers == {"layer/embed", "layer/0", "layer/1", "layer/head"}
    for at, name in enumerate(names[:-1]):
        if name.startswith("layer/"):
            assert names[at + 1].startswith("op/"), f"{name} has no op"
    known: Any = {f"op/{name}" for name, _ in inspect.getmembers(type(variant.ops), inspect.isfunction)}
    assert {name for name in names if name.startswith("op/")} <= known
