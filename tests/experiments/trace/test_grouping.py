"""Equal rows get equal codes, whatever the columns hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.trace.grouping import Interner, group_codes

INTEGERS = st.sampled_from([0, 1, -1, 7, 2**40, -(2**62), 2**63 - 1])
ROWS = st.lists(st.tuples(INTEGERS, INTEGERS, INTEGERS), max_size=30)


def columns_of(rows: list[tuple[int, int, int]]) -> list[np.ndarray]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, 3).T)


@given(ROWS)
def test_rows_share_a_code_exactly_when_they_are_equal(rows: list[tuple[int, int, int]]) -> None:
    codes, firsts = group_codes(columns_of(rows), len(rows))
    assert [rows.index(row) for row in rows] == [int(firsts[code]) for code in codes]
    assert len(firsts) == len(set(rows))


@given(st.lists(ROWS, max_size=4))
def test_interned_chunks_can_be_read_back(chunks: list[list[tuple[int, int, int]]]) -> None:
    interner = Interner(("a", "b", "c"))
    places = [interner.intern(dict(zip("abc", columns_of(chunk), strict=True)), len(chunk)) for chunk in chunks]
    table = interner.table()
    assert len(table) == len({row for chunk in chunks for row in chunk})
    for chunk, found in zip(chunks, places, strict=True):
        assert [tuple(row) for row in table.to_numpy()[found].tolist()] == chunk
