"""Equal rows of several integer columns, found in linear time and without a table of tuples; rows in blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

_BLOCK_ROWS = 1 << 17
_TYPES = (np.int8, np.int16, np.int32, np.int64)


def blocks(num_rows: int) -> Iterator[slice]:
    """Slices that cover the rows, each so short that what is computed from it takes little memory."""
    for first in range(0, num_rows, _BLOCK_ROWS):
        yield slice(first, min(first + _BLOCK_ROWS, num_rows))


def narrowed(values: np.ndarray) -> np.ndarray:
    """A copy in as few bytes as the values need. For keys, which are compared and looked up: sums would overflow."""
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    return values.astype(next(t for t in _TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max))


def group_codes(columns: Iterable[np.ndarray], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(code of every row, first row of every code): rows have the same code when they are equal in all columns."""
    codes = np.zeros(num_rows, dtype=np.int64)
    for values in columns:
        if num_rows and (values != values[0]).any():
            own, distinct = pd.factorize(values)
            codes = pd.factorize(codes * len(distinct) + own)[0]
    firsts = np.empty(int(codes.max()) + 1 if num_rows else 0, dtype=np.int64)
    firsts[codes[::-1]] = np.arange(num_rows)[::-1]
    return codes, firsts


class Interner:
    """A growing table of distinct rows: long tables of few distinct rows become one column of places in it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._places: dict[tuple[int, ...], int] = {}

    def intern(self, columns: Mapping[str, np.ndarray], num_rows: int) -> np.ndarray:
        """The place of every row, int32."""
        codes, firsts = group_codes((columns[name] for name in self._names), num_rows)
        distinct = zip(*(columns[name][firsts].tolist() for name in self._names), strict=True)
        places = [self._places.setdefault(row, len(self._places)) for row in distinct]
        interned: np.ndarray = np.array(places, dtype=np.int32)[codes]
        return interned

    def table(self) -> pd.DataFrame:
        """The distinct rows."""
        values = np.array(list(self._places), dtype=np.int64).reshape(-1, len(self._names))
        return pd.DataFrame(dict(zip(self._names, values.T, strict=True)))
