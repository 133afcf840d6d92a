"""A whole run's steps by kind: what the device did in those that compute prompts and in those that only decode."""

import numpy as np

from experiments.messages import TracedRun
from experiments.trace.attribution import REPLAY
from experiments.trace.ledger import Part
from experiments.trace.reader import Trace
from experiments.trace.rows import Window
from experiments.trace.union import Busy

NAMES = ("decode", "prefill", "other")
PHASE = "phase/"


def parts_of(run: TracedRun, window: Window, busy: Busy, opening: np.ndarray) -> list[Part]:
    """The parts that there are, decode first. Idle is `before` ahead of the rows that open a step (`opening`)."""
    decodes, prefill_tokens = np.array(run.decodes), np.array(run.prefill_tokens)
    kind_of_step = (prefill_tokens > 0).astype(np.int64)
    kind = np.full(len(window.step), NAMES.index("other"), dtype=np.int64)
    # The last step of an engine only collects: nobody launched it. Earlier ones are there without a `replay` range.
    inside = (window.step >= run.first) & (window.step < run.first + len(decodes))
    kind[inside] = kind_of_step[window.step[inside] - run.first]
    work_ms, op_ms = _by_op(window, kind)
    before = np.isin(busy.gap_row, opening)
    idle_ms = [
        np.bincount(kind[busy.gap_row[which]], busy.gap_ns[which] / 1e6, len(NAMES)) for which in (~before, before)
    ]
    parts = []
    for code, name in enumerate(NAMES):
        own = kind_of_step == code
        within_ms, before_ms = (float(idle[code]) for idle in idle_ms)
        sums = int(own.sum()), int(decodes[own].sum()), int(prefill_tokens[own].sum())
        parts.append(Part(name, *sums, float(work_ms[code]), within_ms, before_ms, op_ms[code]))
    return [part for part in parts if part.steps or part.work_ms]


def _by_op(window: Window, kind: np.ndarray) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Milliseconds of work of each kind of step, and the same by op, most first."""
    ops, phases = window.values["op"], window.values["phase"]
    owner = window.op.astype(np.int64) * len(phases) + window.phase
    size = len(ops) * len(phases)
    ms = np.bincount(kind * size + owner, window.duration / 1e6, len(NAMES) * size).reshape(len(NAMES), size)
    found: list[dict[str, float]] = []
    for row in ms:
        sums: dict[str, float] = {}
        for place in np.flatnonzero(row).tolist():
            name = ops[place // len(phases)] or phases[place % len(phases)] or "-"
            sums[name] = sums.get(name, 0.0) + float(row[place])
        found.append(dict(sorted(sums.items(), key=lambda item: -item[1])))
    return ms.sum(axis=1), found


def host_ms(trace: Trace) -> dict[str, float]:
    """How long the host was in each phase of the steps that count."""
    names = trace.ranges["name"].map(lambda name: trace.strings.get(name, "")).to_numpy()
    start, end = trace.ranges["start"].to_numpy(), trace.ranges["end"].to_numpy()
    replays = names == REPLAY
    begin = start[replays].min() if replays.any() else start.min()
    sums: dict[str, float] = {}
    for name in sorted({name for name in names.tolist() if name.startswith(PHASE)}):
        own = (names == name) & (start >= begin)
        sums[name.removeprefix(PHASE)] = float((end[own] - start[own]).sum() / 1e6)
    return sums
