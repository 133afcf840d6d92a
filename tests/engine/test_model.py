"""The forward pass over hand-written steps, against the oracle that knows no pages."""

from dataclasses import replace

import pytest
import torch

from engine.batch import Batch, Stream
from engine.model import hidden, logits, next_token, select
from engine.ops import Ops
from experiments.measuring.reference import reference_logits
from tests.engine.steps import empty_cache, noise, prefill_batch
from tests.engine.tiny import CONFIG, tiny_engine, tiny_model

OPS = Ops()


def test_logits_equal_the_reference() -> None:
    """Two sequences in one step, pages full of NaN before."""
    model, batch = tiny_engine().model, prefill_batch([5, 9])
    found = logits(model, OPS, hidden(model, OPS, batch, [empty_cache() for _ in model.weights.layers]))
    tokens = batch.token_ids_T.long()
    for part, rows in ((tokens[:5], found[:5]), (tokens[5:], found[5:])):
        torch.testing.assert_close(rows, reference_logits(tiny_model(), part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [1, 7])
def test_padding_changes_nothing(padding: int) -> None:
    """Rows of slot -1 after the last sequence, and a sequence of no tokens: as a padded prefill graph has them."""
    model, batch = tiny_engine().model, prefill_batch([5, 9])
    exact = logits(model, OPS, hidden(model, OPS, batch, [empty_cache() for _ in model.weights.layers]))
    zeros = torch.zeros(padding, dtype=torch.int32)
    assert batch.cu_seqlens_B1 is not None
    padded = Batch(
        torch.cat((batch.token_ids_T, zeros)),
        torch.cat((batch.positions_T, zeros)),
        torch.cat((batch.slots_T, zeros - 1)),
        torch.cat((batch.block_tables_BP, zeros[:1].expand(1, 2))),
        torch.cat((batch.context_lens_B, zeros[:1])),
        0,
        torch.cat((batch.cu_seqlens_B1, batch.cu_seqlens_B1[-1:])),
        14 + padding,
        torch.arange(14),
    )
    found = logits(model, OPS, hidden(model, OPS, padded, [empty_cache() for _ in model.weights.layers]))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_hidden_keeps_the_rows_that_are_wanted() -> None:
    """`logit_rows` in any order, repeats too; logits of some rows are those rows of all logits."""
    model, batch = tiny_engine().model, prefill_batch([5, 9])
    caches = [empty_cache() for _ in model.weights.layers]
    every = logits(model, OPS, hidden(model, OPS, batch, caches))
    rows = torch.tensor([13, 4, 4])
    stream = hidden(model, OPS, Batch(**{**vars(batch), "logit_rows": rows}), caches)
    torch.testing.assert_close(logits(model, OPS, stream), every[rows])
    assert next_token(model, OPS, stream).tolist() == every[rows].argmax(-1).tolist()


def test_select_leaves_what_is_not_there() -> None:
    """A stream without residual stays one; sums of squares go with their rows."""
    stream = select(Stream(noise(4, 3), None, noise(4, 2)), torch.tensor([2]))
    assert stream.residual_TH is None
    torch.testing.assert_close(stream.delta_TH, noise(4, 3)[[2]])
    torch.testing.assert_close(stream.square_sums_TJ, noise(4, 2)[[2]])


def test_a_model_runs_over_as_many_caches_as_it_has_layers() -> None:
    """One too few is an error, not a shorter model."""
    model = tiny_engine().model
    with pytest.raises(ValueError, match="shorter"):
        hidden(model, OPS, prefill_batch([3]), [empty_cache()] * (CONFIG.num_layers - 1))


@pytest.mark.parametrize(("window", "kept"), [(63, 63), (64, None), (65, None)])
def test_a_window_that_hides_nothing_is_none(window: int, kept: int | None) -> None:
    """Kernels that know no window are faster."""
    loaded = replace(tiny_model(), config=replace(CONFIG, sliding_window=window))
    assert tiny_engine(loaded=loaded, max_model_len=64).model.config.sliding_window == kept
