"""At which numbers of rows a kernel is to run, by what was measured: as the table of tiles keeps it.

A class of rows is named by its largest member, a power of two, and holds all down to the class before.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunsAt:
    """A kernel runs up to so many rows, but for the classes below that stay `apart`."""

    up_to: int
    apart: tuple[int, ...] = ()

    def __contains__(self, rows: int) -> bool:
        return rows <= self.up_to and rows not in self.apart

    def but(self, found: Mapping[int, bool]) -> "RunsAt":
        """With what was found at some classes in place of what was known.

        A measured class stands for those between it and the measured one before it too; the first for itself.
        """
        runs = {rows: rows in self for rows in _classes(max([self.up_to, *found]))}
        before: int | None = None
        for measured in sorted(found):
            first = measured if before is None else before + 1
            runs.update((rows, found[measured]) for rows in runs if first <= rows <= measured)
            before = measured
        up_to = max((rows for rows in runs if runs[rows]), default=0)
        return RunsAt(up_to, tuple(rows for rows in runs if rows < up_to and not runs[rows]))


def _classes(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]
