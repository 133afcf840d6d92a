"""`fusebench tune by=step`: cell after cell searched, written down, and put into the table where it is confirmed."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.errors import first_line
from experiments.kernels.cases import CASES
from experiments.kernels.step_bench import StepPlace
from experiments.kernels.step_choices import ATTENTION, Choice
from experiments.kernels.step_search import Steps, StepSearch
from experiments.models import Model
from experiments.step_records import StepCell, StepRun, speedup, write_steps
from experiments.tuned_rows import RunsAt
from variants.dispatch import most_rows
from variants.kernels.tile_table import GpuTable, shape_of
from variants.kernels.tiles import Tile

MakeSteps = Callable[[StepPlace, Model, Sequence[str]], Steps]


@dataclass
class Entries:
    """What goes into the table, by key: tiles by class of rows, None where the heuristic's is best; where it runs."""

    tiles: dict[str, dict[int, Tile | None]] = field(default_factory=lambda: defaultdict(dict))
    runs_at: dict[str, RunsAt] = field(default_factory=dict)


Write = Callable[[Entries], None]


@dataclass(frozen=True)
class StepTuner:
    """A run: its record, written after every cell, and where what is confirmed goes."""

    run: StepRun
    folder: Path
    table: Mapping[str, GpuTable]
    make: MakeSteps
    write: Write
    ops: Sequence[str]

    def tune(self, models: Sequence[Model], places: Mapping[str, Sequence[StepPlace]], ends_at: float) -> StepRun:
        """Search each model's places in turn until time is up; each has an equal part of what is left."""
        run, left = self.run, sum(map(len, places.values()))
        for model in models:
            dispatch: dict[str, dict[int, tuple[bool, bool]]] = defaultdict(dict)
            for place in places[model.name]:
                now = time.monotonic()
                if now >= ends_at:
                    print(f"time is up: {left} cells were not searched", flush=True)
                    return run
                try:
                    cell = self._search(model, place, now + (ends_at - now) / left, dispatch)
                except RuntimeError as error:
                    # Out of memory, or a kernel that does not run: the others have their turn.
                    print(f"{_name(place)}: not searched: {first_line(error)}", flush=True)
                else:
                    run = replace(run, cells=(*run.cells, cell))
                    write_steps(self.folder, run)
                left -= 1
            changed = changed_dispatch(dispatch, {place.batch for place in places[model.name]}, self._known)
            if changed:
                self.write(Entries(runs_at=changed))
        return run

    def _known(self, key: str) -> RunsAt:
        """Where the kernel runs by the table that was there, else by the bounds that hold without one."""
        measured = self.table.get(self.run.gpu, GpuTable())
        if key in measured.fused_up_to_rows:
            return RunsAt(measured.fused_up_to_rows[key], tuple(measured.apart.get(key, ())))
        kernel, n, k = shape_of(key)
        return RunsAt(most_rows(CASES[kernel].RUNG, n, k))

    def _search(
        self, model: Model, place: StepPlace, ends_at: float, dispatch: dict[str, dict[int, tuple[bool, bool]]]
    ) -> StepCell:
        """One cell; `dispatch` gets, by key and rows, whether a kernel ran at first and whether it is to run."""
        begin = time.monotonic()
        steps = self.make(place, model, self.ops)
        search = StepSearch(steps, place.batch, self.table, ends_at)
        search.run()
        taken = search.confirm()
        start, attention = tuple(taken["start"]), tuple(taken[ATTENTION])
        cell = StepCell(
            model.name, place.batch, place.context, place.layers, search.noise, start, tuple(taken["end"]) or start,
            attention, tuple(search.kept), tuple(search.tried),
        )  # fmt: skip
        confirmed = is_faster(cell)
        chosen = search.chosen if confirmed else {}
        for site, point in steps.points.items():
            own = steps.own[site]
            dispatch[point.key][point.rows] = own.fused, chosen.get(site, own).fused
        entries = Entries()
        for site, choice in chosen.items():
            if choice.tile:
                point = steps.points[site]
                heuristic = steps.problem(point).heuristic()
                entries.tiles[point.key][point.rows] = None if choice.tile == heuristic else choice.tile
        if entries.tiles:
            self.write(entries)
        print("\n".join(_lines(place, cell, chosen, time.monotonic() - begin)), flush=True)
        return cell


def is_faster(cell: StepCell) -> bool:
    """Whether what was kept is faster than the start beyond doubt."""
    low = cell.speedup.low
    return low is not None and low > 1


def changed_dispatch(
    dispatch: Mapping[str, Mapping[int, tuple[bool, bool]]], batches: set[int], known: Callable[[str], RunsAt]
) -> dict[str, RunsAt]:
    """Where each kernel is to run, if that changed and all batches were searched."""
    return {
        key: known(key).but({rows: now for rows, (_, now) in by_rows.items()})
        for key, by_rows in dispatch.items()
        if by_rows.keys() == batches and any(first != now for first, now in by_rows.values())
    }


def _name(place: StepPlace) -> str:
    return f"{place.model} b={place.batch} ctx {place.context}, {place.layers} layers"


def _lines(place: StepPlace, cell: StepCell, chosen: Mapping[str, Choice], took_s: float) -> list[str]:
    """What a search came to."""
    gain, said = cell.speedup, "written" if chosen else "nothing is written"
    interval = f" [{gain.low:.4f}, {gain.high:.4f}]" if gain.low is not None and gain.high is not None else ""
    effort = f"{len(cell.tried)} tried in {took_s:.0f} s"
    lines = [f"{_name(place)}: {gain.value:.4f}x{interval}, noise {cell.noise or 0:.2%}, {effort}; {said}"]
    lines += [f"  {k.site}: {k.choice}: {k.before_us:.1f} -> {k.after_us:.1f} us" for k in cell.kept]
    if cell.attention_us:
        more = speedup(cell.end_us, cell.attention_us)
        lines.append(
            f"  attention's cut besides gives {more.value:.4f}x; it is not written: the table has no place for it"
        )
    return lines
