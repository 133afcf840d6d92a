"""Where a kernel is to run: what was measured, and for the rest what was known."""

from hypothesis import given
from hypothesis import strategies as st

from experiments.tuned_rows import RunsAt

CLASSES = [2**power for power in range(9)]


@given(st.sets(st.sampled_from(CLASSES)), st.dictionaries(st.sampled_from(CLASSES), st.booleans()))
def test_what_was_measured_decides_and_what_was_known_stays(known: set[int], found: dict[int, bool]) -> None:
    """Any set of classes can be told, and a measured class stands for those down to the one before it."""
    before = RunsAt(0).but({rows: rows in known for rows in CLASSES})
    assert {rows for rows in CLASSES if rows in before} == known
    after = before.but(found)
    for rows in CLASSES:
        above = [measured for measured in sorted(found) if measured >= rows]
        decides = bool(above) and (rows in found or rows > min(found))
        assert (rows in after) == (found[above[0]] if decides else rows in known)


def test_what_stays_apart_lies_below_the_bound() -> None:
    assert RunsAt(64, (8,)).but({64: False}) == RunsAt(32, (8,))
    assert RunsAt(64, (8,)).but({8: True}) == RunsAt(64)
    assert RunsAt(4).but({16: True}) == RunsAt(16, (8,))
    assert RunsAt(64).but({1: False, 64: False}) == RunsAt(0)
