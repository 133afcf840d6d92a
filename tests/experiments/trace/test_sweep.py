"""Open ranges at an instant, against the definition."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from experiments.trace.schema import OPEN_NS
from experiments.trace.sweep import sweep

Range = tuple[int, int, int]


def frame(ranges: list[Range]) -> pd.DataFrame:
    """(start, end, thread) rows; the name of a range is its place."""
    values = np.array(ranges, dtype=np.int64).reshape(-1, 3)
    columns = dict(zip(("start", "end", "thread"), values.T, strict=True))
    return pd.DataFrame({**columns, "name": np.arange(len(ranges))})


@st.composite
def nested(draw: st.DrawFn) -> list[Range]:
    """Push/pop sequences of two threads; some ranges never pop."""
    ranges: list[list[int]] = []
    for thread in (1, 2):
        stack: list[int] = []
        now = draw(st.integers(0, 3))
        for push in draw(st.lists(st.booleans(), max_size=16)):
            now += draw(st.integers(0, 2))
            if push:
                stack.append(len(ranges))
                ranges.append([now, OPEN_NS, thread])
            elif stack:
                ranges[stack.pop()][1] = now
    return [(start, end, thread) for start, end, thread in ranges]


@given(nested(), st.integers(1, 2), st.integers(-1, 40))
def test_the_open_ranges_are_those_that_contain_the_instant(ranges: list[Range], thread: int, when: int) -> None:
    swept = sweep(frame(ranges))
    threads, instants = np.array([thread]), np.array([when])
    path = swept.paths[swept.path_ids(threads, instants)[0]]
    holding = [i for i, (start, end, own) in enumerate(ranges) if own == thread and start <= when <= end]
    assert sorted(path) == holding
    # Outermost first: of ranges that start together the one that ends later is the outer one.
    assert list(path) == sorted(path, key=lambda i: (ranges[i][0], -ranges[i][1], i))
    owner = swept.owners(threads, instants)[0]
    assert owner == (path[-1] if path else -1)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=12), st.integers(0, 30))
def test_parents_lead_to_every_open_range_even_without_nesting(spans: list[tuple[int, int]], when: int) -> None:
    ranges = [(start, start + length, 1) for start, length in spans]
    swept = sweep(frame(ranges))
    current = int(swept.owners(np.array([1]), np.array([when]))[0])
    chain = []
    while current >= 0:
        chain.append(current)
        current = int(swept.parent[current])
    holding = {i for i, (start, end, _) in enumerate(ranges) if start <= when <= end}
    assert {i for i in chain if ranges[i][1] >= when} == holding


def test_no_ranges_at_all() -> None:
    swept = sweep(frame([]))
    assert swept.path_ids(np.array([1, 2]), np.array([5, 6])).tolist() == [0, 0]
    assert list(swept.paths) == [()]
