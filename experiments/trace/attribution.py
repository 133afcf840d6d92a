"""Every piece of device work gets one owner: the NVTX ranges around the call that launched it, and, inside a CUDA
graph, those around the call that put it into the graph.

A launch is found by (process, correlation id): correlation ids repeat between processes. A kernel of a replayed graph
shares the correlation id of the graph's launch, which gives its phase and step; its layer and op come from its node,
followed through clones to the node made while the stream was captured, and the ranges open on that thread then.
Range names are a grammar (engine/ranges.py, experiments/measuring/tracing.py): cell/ID, replay, step/N, phase/NAME,
layer/N, op/NAME.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from experiments.trace.grouping import blocks, group_codes, narrowed
from experiments.trace.reader import PROCESS_MASK, Trace
from experiments.trace.schema import NONE
from experiments.trace.sweep import Sweep, sweep

FORWARD = "forward"
REPLAY = "replay"


@dataclass(frozen=True)
class Owner:
    """What the open ranges say, the innermost of each kind. `path` holds all their names, outermost first.

    `replay` marks the steps that count; the one before them captures their graphs.
    """

    path: tuple[str, ...] = ()
    cell: str | None = None
    phase: str | None = None
    layer: str | None = None
    op: str | None = None
    replay: bool = False

    @classmethod
    def of(cls, path: Iterable[str]) -> "Owner":
        """Read a path of range names, outermost first."""
        path = tuple(path)
        found = dict(map(_field, path))
        return cls(
            path=path,
            cell=found.get("cell"),
            phase=found.get("phase"),
            layer=found.get("layer"),
            op=found.get("op"),
            replay=REPLAY in path,
        )

    @property
    def has_place(self) -> bool:
        """Is it known where in the model this is?"""
        return self.layer is not None or self.op is not None


@cache
def _field(text: str) -> tuple[str, str]:
    """The kind and the name in a range's text; a text that is not of the grammar has no kind."""
    kind, slash, name = text.partition("/")
    return (kind, name) if slash else ("", text)


@dataclass(frozen=True)
class Attribution:
    """`work` is the trace's `gpu` with four columns more: `call` (row of the launching call, -1 unknown), `step` (in
    which that was made, -1 outside steps), `launch` and `place` (both places in `owners`): the phase is the launch's,
    layer and op are the place's. `owners[0]` is nobody.
    """

    work: pd.DataFrame
    owners: list[Owner]

    def values(self, field: str) -> tuple[np.ndarray, list[str | None]]:
        """One field of the owners: a code for each of them, and the values that the codes stand for."""
        values: dict[str | None, int] = {}
        codes = [values.setdefault(getattr(owner, field), len(values)) for owner in self.owners]
        return narrowed(np.array(codes, dtype=np.int32)), list(values)


def attribute(trace: Trace) -> Attribution:
    """Find the owner of every row of `trace.gpu`."""
    numbers = _step_numbers(trace)
    own = (trace.ranges["style"].to_numpy() == 0) & (trace.ranges["crosses"].to_numpy() == 0)
    columns = ["start", "end", "thread", "name"]
    # Steps are swept apart: with their numbers in it, no path would occur twice.
    steps = sweep(trace.ranges.loc[own & (numbers != NONE), columns])
    swept = sweep(trace.ranges.loc[own & (numbers == NONE), columns])
    threads, starts = trace.calls["thread"].to_numpy(), trace.calls["start"].to_numpy()
    # A step's row is -1 where there is none, and finds the -1 at the end; so does a call that is not known.
    call_steps = np.append(numbers[own & (numbers != NONE)], np.int32(NONE))[steps.owners(threads, starts)]
    call_paths = swept.path_ids(threads, starts)
    of_node = _node_places(trace, swept)
    # A range without a launch still says that its cell was there, or that steps were replayed.
    names = trace.ranges["name"][own].unique().tolist()
    paths = [*swept.paths, *((name,) for name in names)]
    owners = [Owner.of([trace.strings.get(name, "?") for name in path]) for path in paths]
    work = trace.gpu.copy(deep=False)
    work["call"] = call = launching_calls(trace)
    work["step"] = np.append(call_steps, np.int32(NONE))[call]
    work["launch"] = launch = np.append(call_paths, np.int32(0))[call]
    work["place"] = _places(trace, of_node, owners, launch)
    return Attribution(work, owners)


def _step_numbers(trace: Trace) -> np.ndarray:
    """The N of every range `step/N`, -1 for all others."""
    codes, names = pd.factorize(trace.ranges["name"].to_numpy())
    fields = [_field(trace.strings.get(name, "?")) for name in names.tolist()]
    numbers = [int(name) if kind == "step" and name.isdecimal() else NONE for kind, name in fields]
    found: np.ndarray = np.array(numbers, dtype=np.int32)[codes]
    return found


def launching_calls(trace: Trace) -> np.ndarray:
    """For every row of `trace.gpu`, the row of `trace.calls` that launched it; -1 where none is known."""
    launching = np.full(len(trace.gpu), NONE, dtype=np.int32)
    if not len(trace.calls):
        return launching
    call_process = trace.calls["thread"].to_numpy() & PROCESS_MASK
    processes = np.unique(call_process)
    key = _key(processes, call_process, trace.calls["correlation"].to_numpy())
    order = np.argsort(key, kind="stable").astype(np.int32)
    key = key[order]
    process, spec = trace.specs["process"].to_numpy(), trace.gpu["spec"].to_numpy()
    correlation = trace.gpu["correlation"].to_numpy()
    for block in blocks(len(launching)):
        wanted = _key(processes, process[spec[block]], correlation[block])
        spot = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        launching[block] = np.where((key[spot] == wanted) & (wanted >= 0), order[spot], NONE)
    return launching


def _key(processes: np.ndarray, process: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Process and 32-bit correlation id as one integer; -1 for a process that made no call or an absent id."""
    index = np.minimum(np.searchsorted(processes, process), len(processes) - 1)
    known = (processes[index] == process) & (correlation != NONE)
    return np.where(known, (index << 32) | (correlation.astype(np.int64) & 0xFFFFFFFF), NONE)


def _places(
    trace: Trace, of_node: Mapping[tuple[int, int], int], owners: list[Owner], launch: np.ndarray
) -> np.ndarray:
    """Where in the model each row belongs: its node's capture if that says so, else its launch."""
    place = launch.copy()
    node, spec = trace.gpu["node"].to_numpy(), trace.gpu["spec"].to_numpy()
    process = trace.specs["process"].to_numpy()
    says = np.array([owner.has_place for owner in owners])
    for block in blocks(len(place) if of_node else 0):
        columns = (process[spec[block]], node[block])
        codes, firsts = group_codes(columns, len(columns[0]))
        keys = zip(*(column[firsts].tolist() for column in columns), strict=True)
        captured = np.array([of_node.get(key, 0) if key[1] != NONE else 0 for key in keys], dtype=np.int32)[codes]
        place[block] = np.where(says[captured], captured, place[block])
    return place


def _node_places(trace: Trace, swept: Sweep) -> dict[tuple[int, int], int]:
    """(process, graph node) -> the path open when the node it was cloned from was captured; 0 where that is unknown."""
    nodes = trace.nodes
    process = (nodes["thread"].to_numpy() & PROCESS_MASK).tolist()
    ids, originals = nodes["node"].tolist(), nodes["original"].tolist()
    opened = swept.path_ids(nodes["thread"].to_numpy(), nodes["start"].to_numpy()).tolist()
    original = {(p, n): o for p, n, o in zip(process, ids, originals, strict=True) if o not in (NONE, n)}
    born: dict[tuple[int, int], int] = {}
    for p, n, o, path in zip(process, ids, originals, opened, strict=True):
        if o == NONE:
            born.setdefault((p, n), path)
    return {key: born.get(_root(key, original), 0) for key in dict.fromkeys(zip(process, ids, strict=True))}


def _root(node: tuple[int, int], original: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """The node at the head of a line of clones. A line that bites its own tail has no head: (process, -1)."""
    seen = {node}
    while node in original:
        node = (node[0], original[node])
        if node in seen:
            return (node[0], NONE)
        seen.add(node)
    return node
