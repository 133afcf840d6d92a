"""The packed buffer of a step: what is written is what the forward pass reads, padding included."""

from array import array
from functools import partial
from unittest.mock import Mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import inputs
from engine.inputs import ALIGNMENT, INACTIVE, Layout, Staging, packed_size
from engine.kernels.step import advance
from engine.request import SamplingParams, SequenceState
from engine.scheduler import Scheduled

BLOCK_SIZE, DUMMY_ROW = 16, 9


def scheduled(row: int, start: int, length: int, samples: bool, blocks: list[int]) -> Scheduled:
    """A sequence's share of a step; token at position p is 100 * row + p. One that does not sample goes on."""
    tokens = [100 * row + p for p in range(start + length + (0 if samples else 5))]
    sequence = SequenceState(
        row, array("q", tokens), len(tokens), SamplingParams(), frozenset(), 0, row=row, blocks=blocks
    )
    return Scheduled(sequence, start, length, samples)


def buffer_of(layout: Layout) -> np.ndarray:
    """A buffer full of what the step before left there."""
    return np.full(packed_size(layout.num_tokens, layout.num_seqs, layout.table_width), 77, dtype=np.int32)


@given(st.integers(1, 40), st.data(), st.integers(1, 9))
def test_every_layout_fits_the_buffer(num_seqs: int, data: st.DataObject, table_width: int) -> None:
    """The size is computed once, for the largest step; fields neither overlap nor leave it."""
    num_tokens = data.draw(st.integers(num_seqs, 100))
    num_decode = data.draw(st.integers(0, num_seqs))
    layout = Layout(num_seqs if num_decode == num_seqs else num_tokens, num_seqs, num_decode, table_width)
    buffer = np.zeros(packed_size(layout.num_tokens, num_seqs, table_width), dtype=np.int32)
    fields = layout.fields(buffer)
    used = fields.pop("all")
    sizes = {"rows": num_seqs, "positions": layout.num_tokens, "tables": num_seqs * table_width}
    if num_decode < num_seqs:
        sizes |= dict.fromkeys(("tokens", "slots"), num_tokens) | dict.fromkeys(
            ("context_lens", "logit_rows"), num_seqs
        )
        sizes["cu_seqlens"] = num_seqs - num_decode + 1
    assert {name: field.size for name, field in fields.items()} == sizes
    for value, field in enumerate(fields.values(), start=1):
        assert not field.any()
        field[...] = value
    # Between them lies nothing but padding, and each begins where Triton takes a pointer for aligned.
    assert np.count_nonzero(used) == sum(field.size for field in fields.values())
    assert all((field.ctypes.data - buffer.ctypes.data) % 16 == 0 for field in fields.values())
    assert used.size <= sum(field.size + ALIGNMENT - 1 for field in fields.values())


def test_long_contexts_come_first_and_equals_keep_their_order() -> None:
    """One more token each, as after a step, changes nothing: a batch that stays needs no upload."""
    contexts = [5, 90, 17, 90, 1, 17]
    for later in (0, 1, 64):
        decodes = [scheduled(row, start + later, 1, True, []) for row, start in enumerate(contexts)]
        assert [item.sequence.row for item in inputs.longest_first(decodes)] == [1, 3, 2, 5, 0, 4]


def test_a_prompt_step_reads_back_as_written() -> None:
    """A decode, a middle chunk and a last chunk, in a layout padded to more tokens and sequences."""
    items = [
        scheduled(row=3, start=17, length=1, samples=True, blocks=[5, 2]),
        scheduled(row=0, start=16, length=4, samples=False, blocks=[7, 1]),
        scheduled(row=6, start=0, length=3, samples=True, blocks=[4]),
    ]
    layout = Layout(num_tokens=12, num_seqs=5, num_decode=1, table_width=3)
    packed = inputs.fill_prompts(buffer_of(layout), layout, items[:1], items[1:], BLOCK_SIZE, DUMMY_ROW)
    batch = inputs.prompt_batch(torch.from_numpy(packed), layout, num_logit_rows=2, max_query_len=4)
    assert batch.token_ids_T.tolist()[1:8] == [16, 17, 18, 19, 600, 601, 602]
    assert batch.positions_T.tolist() == [17, 16, 17, 18, 19, 0, 1, 2, 0, 0, 0, 0]
    assert batch.slots_T.tolist() == [2 * 16 + 1, 16, 17, 18, 19, 64, 65, 66, -1, -1, -1, -1]
    assert batch.block_tables_BP.tolist() == [[5, 2, 0], [7, 1, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert batch.context_lens_B.tolist() == [18, 20, 3, 0, 0]
    assert batch.cu_seqlens_B1 is not None
    assert batch.cu_seqlens_B1.tolist() == [0, 4, 7, 7, 7]
    assert batch.logit_rows is not None
    assert batch.logit_rows.tolist() == [0, 7]
    assert (batch.num_decode, batch.max_query_len) == (1, 4)
    # Padded logit rows publish to a row that nobody reads.
    assert layout.fields(packed)["rows"].tolist() == [3, 6, DUMMY_ROW, DUMMY_ROW, DUMMY_ROW]


def test_decodes_and_prompts_that_sample_come_in_order_whatever_lies_between() -> None:
    """Two decodes padded to four, two prompts that end with a middle chunk between them, padded to five."""
    decodes = [scheduled(row, start, 1, True, [row]) for row, start in ((4, 9), (2, 6))]
    prompts = [scheduled(row, 0, length, row != 7, [row]) for row, length in ((1, 2), (7, 3), (5, 1))]
    layout = Layout(num_tokens=4 + 8, num_seqs=4 + 5, num_decode=4, table_width=2)
    packed = inputs.fill_prompts(buffer_of(layout), layout, decodes, prompts, BLOCK_SIZE, DUMMY_ROW)
    fields = layout.fields(packed)
    assert fields["rows"].tolist() == [4, 2, 1, 5] + [DUMMY_ROW] * 5
    assert fields["logit_rows"].tolist() == [0, 1, 4 + 1, 4 + 5] + [0] * 5
    assert fields["context_lens"].tolist() == [10, 7, 0, 0, 2, 3, 1, 0, 0]
    assert fields["cu_seqlens"].tolist() == [0, 2, 5, 6, 6, 6]
    assert fields["positions"].tolist() == [9, 6, 0, 0, 0, 1, 0, 1, 2, 0, 0, 0]
    assert fields["slots"].tolist() == [4 * 16 + 9, 2 * 16 + 6, -1, -1, 16, 17, 112, 113, 114, 80, -1, -1]
    assert fields["tokens"].tolist()[4:10] == [100, 101, 700, 701, 702, 500]


def test_decode_steps_go_on_without_the_host() -> None:
    """Packed once, advanced twice on the device; a padded row stays padded."""
    items = [scheduled(row, start, 1, True, blocks) for row, start, blocks in ((2, 15, [3, 8]), (5, 40, [1, 6, 4]))]
    layout = Layout(num_tokens=3, num_seqs=3, num_decode=3, table_width=4)
    packed = inputs.fill_decode(buffer_of(layout), layout, items, DUMMY_ROW)
    fields = layout.fields(torch.from_numpy(packed))
    last_token_R = torch.arange(10, dtype=torch.int64) * 11
    for steps_gone in range(2):
        tokens, indices, context_lens, slots = advance(
            fields["rows"], fields["positions"], fields["tables"], last_token_R, BLOCK_SIZE
        )
        assert tokens.tolist() == [22, 55, 99]
        assert indices.tolist() == [15 + steps_gone, 40 + steps_gone, 0]
        assert context_lens.tolist() == [16 + steps_gone, 41 + steps_gone, 0]
        assert slots.tolist() == [[3 * 16 + 15, 4 * 16 + 8, -1], [8 * 16, 4 * 16 + 9, -1]][steps_gone]
    assert fields["positions"].tolist()[2] == INACTIVE + 2


def test_uploads_take_turns() -> None:
    """A buffer just uploaded is not the next to be written, and an upload moves only what was asked for."""
    staging = Staging(8, torch.device("cpu"), depth=3)
    addresses = []
    for value in (1, 2, 3, 4):
        buffer = staging.next()
        addresses.append(buffer.ctypes.data)
        buffer[:] = value
        assert buffer.dtype == np.int32
        staging.upload(5)
        assert staging.device_buffer.dtype == torch.int32
        assert staging.device_buffer.tolist() == [value] * 5 + [0] * 3
    assert len(set(addresses)) == 3
    assert addresses[3] == addresses[0]


def test_a_buffer_is_written_when_its_own_copy_has_ended() -> None:
    """On a GPU, where an upload is only asked for; the first three wait for nothing."""
    staging, seen = Staging(8, torch.device("cpu"), depth=3), list[tuple[str, int]]()
    copied = [
        Mock(**{f"{call}.side_effect": partial(seen.append, (call, turn)) for call in ("synchronize", "record")})
        for turn in range(3)
    ]
    staging._cuda, staging._copied = True, copied
    for _ in range(5):
        staging.next()
        staging.upload(5)
    turns = [turn for _, turn in seen[::2]]
    assert seen == [(call, turn) for turn in turns for call in ("synchronize", "record")]
    assert len(set(turns[:3])) == 3
    assert turns[3:] == turns[:2]
