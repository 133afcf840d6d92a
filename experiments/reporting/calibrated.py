"""What `fusebench calibrate` found, as a table: for the terminal and for the documentation."""

from collections.abc import Sequence

from experiments.calibration import Calibration
from experiments.reporting.formats import Column, Kind, Table


def calibration_table(rows: Sequence[Calibration]) -> Table:
    """One line per noise, slow-down and way to stop."""
    columns = (
        Column("noise", "Noise"),
        Column("effect", "Slower by"),
        Column("stops", "Ends points"),
        Column("rounds", "Rounds", Kind.NUMBER),
        *(Column(name, name, Kind.PERCENT) for name in ("same", "slower", "faster", "unresolved")),
        Column("wrong_sweeps", "Sweeps with a wrong claim", Kind.PERCENT),
        Column("coverage", "95 % intervals that cover", Kind.PERCENT),
    )
    body = tuple(
        (
            row.noise,
            f"{100 * row.effect:g} %",
            "when settled" if row.adaptive else "after all rounds",
            round(row.rounds, 1),
            row.same,
            row.slower,
            row.faster,
            row.unresolved,
            row.wrong_sweeps,
            row.coverage,
        )
        for row in rows
    )
    return Table("calibration", "Calibration", "", columns, body)
