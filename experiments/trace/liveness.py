"""Does the trace hold what the variant says it runs? A fusion that is switched on and does not appear is an error.

The worker names each rung and the kernel that proves it; the engine leaves a range `rung/NAME` wherever a rung takes a
piece of work, so that one which the dispatcher leaves off at this shape is told from one that is broken.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from experiments.errors import UserError
from experiments.messages import Rung
from experiments.trace.ledger import Fate, Ledger, RungRow
from experiments.trace.reader import Trace

MARK = "rung/"


def check_rungs(trace: Trace, ledger: Ledger, rungs: Sequence[Rung]) -> list[RungRow]:
    """The fate of every rung in this trace."""
    names = (trace.strings.get(name, "") for name in trace.ranges["name"].unique().tolist())
    taken = {name.removeprefix(MARK) for name in names if name.startswith(MARK)}
    has_kernels = any(row.kind == "kernel" for row in ledger.kernels)
    rows = []
    for rung in rungs:
        count = launches(ledger, rung.kernel)
        fate = _fate(rung.on, rung.name in taken, bool(count), has_kernels)
        rows.append(RungRow(rung.name, rung.kernel, fate, count / ledger.device_steps))
    return rows


def _fate(on: bool, taken: bool, ran: bool, has_kernels: bool) -> Fate:
    if not on:
        return Fate.STRAY if ran or taken else Fate.OFF
    if not taken and not ran:
        return Fate.LEFT_OFF
    if ran:
        return Fate.LIVE
    return Fate.DEAD if has_kernels else Fate.TWIN


def launches(ledger: Ledger, pattern: str) -> int:
    """How often a kernel of that name ran in the window; `*` stands for anything."""
    return sum(row.count for row in ledger.kernels if row.kind != "graph" and fnmatchcase(row.name, pattern))


def contradictions(ledger: Ledger) -> list[str]:
    """What the trace says against the variant, one sentence each."""
    words = {
        Fate.DEAD: "rung {0.name} took work and its kernel {0.kernel} never ran",
        Fate.STRAY: "rung {0.name} is switched off and ran all the same ({0.kernel})",
    }
    return [words[row.fate].format(row) for row in ledger.rungs if row.fate in words]


def assert_present(ledger: Ledger, kernels: Mapping[str, int | None]) -> None:
    """Every named kernel ran, and as often per step as said (None: at least once); UserError says which did not."""
    wrong = []
    for name, wanted in kernels.items():
        count = launches(ledger, name)
        per_step = count / ledger.device_steps
        if wanted is None and not count:
            wrong.append(f"{name} never ran")
        elif wanted is not None and per_step != wanted:
            wrong.append(f"{name} ran {per_step:g} times per step, not {wanted}")
    if wrong:
        ran = ", ".join(sorted({row.name for row in ledger.kernels if row.kind == "kernel"})) or "no kernel"
        raise UserError(f"the trace contradicts the variant: {'; '.join(wrong)} (what ran: {ran})")
