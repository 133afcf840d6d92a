"""What variants do with a part of a model, and on their way to the process that holds it."""

import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import Variant
from engine.batch import Stream
from engine.parallel.ranks import Columns, Ranks
from engine.weights import Linear
from tests.engine.parallel.threads import on_ranks
from tests.shipped import VARIANTS
from variants import dispatch


def noise(*shape: int) -> Tensor:
    """Seeded normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_a_variant_can_be_sent_to_another_process(variant: Variant) -> None:
    """After it has run too: what it has compiled stays here."""
    getattr(variant.ops, "_compiled", None)
    sent: Variant = pickle.loads(pickle.dumps(variant))
    assert (sent.name, sent.replaced, sent.switches, sent.runtime) == (
        variant.name,
        variant.replaced,
        variant.switches,
        variant.runtime,
    )
    assert sent.prepare is variant.prepare


def test_a_residual_is_added_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not in the epilogue of each rank's part of the product; that the rung is off is said once."""
    x, weight, bias, residual = noise(3, 8), noise(5, 8), noise(5), noise(3, 5)
    ops: Any = VARIANTS["fused"].ops
    dispatch.say_off.cache_clear()

    def task(ranks: Ranks) -> list[Stream]:
        part = Linear(ranks.part(weight, 1), bias if ranks.rank == 0 else None, sum_over=ranks)
        return [ops.linear_add(ranks.part(x, 1), part, residual) for _ in range(2)]

    with caplog.at_level(logging.INFO, logger="fusebench.variants"):
        streams = [stream for two in on_ranks(2, task) for stream in two]
    for stream in streams:
        assert stream.residual_TH is residual
        assert stream.square_sums_TJ is None
        torch.testing.assert_close(stream.delta_TH, x @ weight.T + bias)
    said = "residual_epilogue does not run: the product is summed over tensor-parallel ranks"
    assert said in [record.getMessage() for record in caplog.records]
    assert len(caplog.records) <= 2


@pytest.mark.parametrize("name", ["baseline", "fused"])
@pytest.mark.parametrize("rows", [1, 40])
def test_the_head_finds_its_token_in_another_s_part(name: str, rows: int) -> None:
    """With the kernel that keeps logits out of memory, and without it where the rows are too many."""
    x, gamma, weight, ops = noise(rows, 8), noise(8), noise(11, 8), VARIANTS[name].ops

    def task(ranks: Ranks) -> tuple[Tensor, Tensor]:
        head = Linear(ranks.part(weight, 0), columns=Columns(ranks, 11))
        stream = Stream(x, None)
        return ops.next_token(stream, gamma, head, 1e-6), ops.logits(stream, gamma, head, 1e-6)

    whole = ops.logits(Stream(x, None), gamma, Linear(weight), 1e-6)
    for tokens, logits in on_ranks(2, task):
        assert tokens.tolist() == whole.argmax(-1).tolist()
        torch.testing.assert_close(logits, whole)
