"""`fusebench tune`: search tiles for the fused linear layers on this GPU, and where fusing them pays.

fusebench tune models=[qwen3-0.6b]
fusebench tune models=[qwen3-8b] ops=[linear_add] rows=[1,2,4,8,16,32,64] time_budget_s=300
fusebench tune by=step models=[qwen3-0.6b] points=[[1,128],[8,1024],[64,1024]]
fusebench tune by=step models=[qwen3-8b] points=[[8,1024]] layers=8

by=kernel times one kernel at a time. All candidates are compiled first, side by side, then timed one after the other on
the idle GPU. Kernels that norm have the form that they have behind linear_add, and fused kernels are launched with
programmatic dependent launch (pdl): so the variant `fused` runs them. What they replace is as the baseline runs it.
With time_budget_s tiles for 1, 8 and 64 rows come first, and what is measured by then is kept; a bound needs all rows
of its shape.

by=step times whole decode steps of `fused` at points [batch, context]: what is fastest alone need not be beside the
others. Kernel after kernel, a tile (or the kernel off) is kept where the step gains beyond noise, in two passes; what
came of it and the start then take turns, and it is written only where it is faster beyond doubt. layers=8 cuts the
model to so many. Attention's cut is told, not written. Its log is results/tune/RUN_ID/tune.json. It takes models, ops,
dtype, points, layers, time_budget_s and table.

Writes variants/kernels/tiles.json after every point: a tile where it beats the heuristic's beyond noise, and up to how
many rows, but for which, each kernel is no slower than what it replaces. Tiles and dispatch look the GPU's name up
there; on other GPUs the heuristic goes on. Rows are powers of two, each standing for all down to the one before it.
"""

import json
import math
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import run_or_help
from experiments.durable import insist_on_place, make_new_folder
from experiments.environment import ROOT, machine, resolve_device
from experiments.errors import UserError, first_line
from experiments.kernel_records import SCHEMA, new_stamp
from experiments.models import Model, find_model
from experiments.options import choose, parse_options, usage
from experiments.step_records import TUNE, StepRun
from experiments.tuned_rows import RunsAt

if TYPE_CHECKING:
    from experiments.kernels.compiling import Compile
    from experiments.kernels.measure import Bench
    from experiments.kernels.search import Found
    from experiments.kernels.step_bench import StepPlace
    from experiments.kernels.step_tuning import MakeSteps
    from experiments.kernels.timing import Timer
    from variants.kernels.tiles import Tile

KERNEL, STEP = "kernel", "step"
OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head")
TABLE = ROOT / "variants" / "kernels" / "tiles.json"
# The most of a time budget that compiling may take.
COMPILING_SHARE = 0.6


@dataclass(frozen=True)
class Options:
    """What can be set on the command line; a time budget of 0 is none, 0 layers are all."""

    by: str = KERNEL
    models: tuple[str, ...] = ("qwen3-0.6b",)
    ops: tuple[str, ...] = ()
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    dtype: str = "bfloat16"
    repeats: int = 20
    pdl: bool = True
    points: tuple[tuple[int, ...], ...] = ((1, 128), (8, 1024), (64, 1024))
    layers: int = 0
    time_budget_s: float = 0.0
    table: str = str(TABLE)
    results_dir: str = "results"


def parse(arguments: Sequence[str]) -> Options:
    """Options, checked but for the GPU."""
    options = parse_options(Options, "tune", arguments)
    choose("by", (options.by,), (KERNEL, STEP))
    choose("ops", options.ops, OPS)
    choose("dtype", (options.dtype,), ("bfloat16", "float16"))
    for rows in options.rows:
        if not _is_power_of_two(rows):
            raise UserError(f"tune: rows={rows} is no power of two")
    _check_points(options.points)
    if options.time_budget_s < 0:
        raise UserError(f"tune: time_budget_s={options.time_budget_s:g} must not be negative")
    for model in options.models:
        if not find_model(model).sizes:
            raise UserError(f"models={model}: its sizes are not known without loading it; name one of configs/model")
    return options


def _check_points(points: Sequence[Sequence[int]]) -> None:
    for point in points:
        if len(point) != 2 or not _is_power_of_two(point[0]) or point[1] < 1:
            shown = ",".join(map(str, point))
            raise UserError(f"tune: points=[[{shown}]] is no batch, a power of two, and its context")
    if not points or len({batch for batch, _ in points}) < len(points):
        raise UserError("tune: points needs one context a batch: tiles are looked up by rows alone")


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    help_text = usage(__doc__, Options, OPS).replace(f"{ROOT}{os.sep}", "")
    return run_or_help(argv, help_text, lambda arguments: run(parse(arguments), arguments))


def run(options: Options, arguments: Sequence[str]) -> int:
    """Every point in turn, kept as soon as it is measured."""
    if resolve_device("auto", machine()) != "cuda":
        raise UserError("tune needs a GPU: the times of twins choose nothing")
    insist_on_place(Path(options.table), "table")
    _say_if_shared()
    if options.by == STEP:
        run_steps(options, arguments)
        return 0
    import torch

    from experiments.kernels.compiling import compile_on_gpu
    from experiments.kernels.measure import Bench
    from experiments.kernels.timing import l2_bytes, time_on_gpu, time_quickly

    device = torch.device("cuda")
    bench = Bench(device, options.dtype, time_on_gpu, options.repeats, l2_bytes(device), pdl=options.pdl)
    with torch.inference_mode():
        tune(options, bench, torch.cuda.get_device_name(device), compile_on_gpu, time_quickly)
    return 0


def _say_if_shared() -> None:
    """A tile that is best beside others' work need not be the best alone."""
    import torch

    from experiments.measuring.presence import others_on_gpu

    own = torch.zeros(1, device="cuda")
    if others := others_on_gpu(own.device):
        print(f"tune: other processes are on the GPU: {others}; what is chosen may be so for them", flush=True)


def run_steps(options: Options, arguments: Sequence[str]) -> None:
    """by=step on the GPU at hand."""
    import torch

    from experiments.kernels.step_bench import GpuSteps, StepPlace

    def make(place: StepPlace, model: Model, ops: Sequence[str]) -> GpuSteps:
        return GpuSteps(place, model.sizes, ops)

    stamp = new_stamp(shlex.join(["fusebench", TUNE, *arguments]), "cuda")
    folder = make_new_folder(Path(options.results_dir) / TUNE / stamp.run_id)
    commit = stamp.code.commit + " with uncommitted changes" * stamp.code.dirty
    gpu = torch.cuda.get_device_name()
    run = StepRun(SCHEMA, folder.name, stamp.created, stamp.command, commit, gpu, dict(stamp.machine.packages))
    tune_steps(options, run, folder, make)
    print(f"The log: {folder / TUNE}.json", flush=True)


def tune_steps(options: Options, run: StepRun, folder: Path, make: "MakeSteps") -> StepRun:
    """Search the points of every model until time is up; `run` with what was found."""
    from experiments.kernels.step_tuning import Entries, StepTuner
    from variants.kernels.tile_table import FILE, read_table

    def write(entries: Entries) -> None:
        update(Path(options.table), run.gpu, entries.tiles, entries.runs_at)

    ends_at = time.monotonic() + (options.time_budget_s or math.inf)
    models = list({model.name: model for model in map(find_model, options.models)}.values())
    known = read_table(FILE.read_text(encoding="utf-8"))
    tuner = StepTuner(run, folder, known, make, write, options.ops or OPS)
    return tuner.tune(models, {model.name: _places(model, options) for model in models}, ends_at)


def _places(model: Model, options: Options) -> "list[StepPlace]":
    """A model's cells; UserError where one does not fit its positions."""
    from experiments.kernels.step_bench import STEPS, StepPlace

    layers = int(model.sizes["num_layers"])
    for _, context in options.points:
        if model.max_positions is not None and context + STEPS > model.max_positions:
            raise UserError(f"tune: {context} tokens and {STEPS} steps do not fit {model.name}'s {model.max_positions}")
    cut = min(options.layers or layers, layers)
    return [StepPlace(model.source, batch, context, cut, options.dtype) for batch, context in options.points]


def tune(options: Options, bench: "Bench", gpu: str, compile_: "Compile", quick: "Timer") -> None:
    """Compile every candidate, then search point by point until time is up."""
    from experiments.kernels import tuning
    from experiments.kernels.cases import sites

    begin_s, budget_s = time.monotonic(), options.time_budget_s or math.inf
    sizes = [find_model(model).sizes for model in options.models]
    places = [(op, shape) for op in options.ops or OPS for of in sizes for shape in sites(op, of).values()]
    todo = tuning.tiles_to_try(tuning.points(places, options.rows), bench)
    compiled = compile_(tuning.compilations(todo, bench), begin_s + COMPILING_SHARE * budget_s)
    found: dict[str, dict[int, Found]] = defaultdict(dict)
    for done, (point, tiles) in enumerate(todo.items()):
        if time.monotonic() >= begin_s + budget_s:
            print(f"time is up: {len(todo) - done} of {len(todo)} points were not measured", flush=True)
            break
        able = [tile for tile in tiles if tuning.compilation(point, tile, bench) in compiled]
        try:
            if tiles[0] not in able:
                raise RuntimeError(f"the heuristic's {tiles[0]} did not compile")
            result = tuning.search_point(point, able, bench, quick)
        except RuntimeError as error:
            # Out of memory, or a kernel that does not run: the others have their turn.
            print(f"{point.key}, {point.rows} rows: not measured: {first_line(error)}", flush=True)
            continue
        mine = found[point.key]
        mine[point.rows] = result
        print(_line(point.key, point.rows, result), flush=True)
        keep(Path(options.table), gpu, point.key, mine, whole=len(mine) == len(set(options.rows)))
    print(f"{sum(map(len, found.values()))} points in {time.monotonic() - begin_s:.0f} s", flush=True)


def runs_at(pays: Mapping[int, bool]) -> RunsAt | None:
    """Where a kernel pays; None where the rows are not all powers of two from 1 on."""
    counts = sorted(pays)
    return RunsAt(0).but(pays) if counts == [2**power for power in range(len(counts))] else None


def keep(file: Path, gpu: str, key: str, found: Mapping[int, "Found"], whole: bool = True) -> None:
    """Put what was found at these rows into the table.

    Not `whole`: rows are missing yet, and the bound stays what it was.
    """
    where = runs_at({rows: result.pays for rows, result in found.items()})
    tiles = {rows: result.tile for rows, result in found.items()}
    update(file, gpu, {key: tiles}, {key: where} if where is not None and whole else {})


def update(
    file: Path, gpu: str, tiles: Mapping[str, Mapping[int, "Tile | None"]], kernels_run_at: Mapping[str, RunsAt]
) -> None:
    """Replace what the table has of these keys and rows, at once or not at all; a table that is not there is begun.

    None in place of a tile leaves those rows to the heuristic.
    """
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else empty_table()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = table["gpus"].setdefault(gpu, {"tiles": {}, "fused_up_to_rows": {}})
    for key, by_rows in tiles.items():
        kept = {rows: tile for rows, tile in known["tiles"].pop(key, {}).items() if int(rows) not in by_rows}
        kept |= {str(rows): asdict(tile) for rows, tile in by_rows.items() if tile}
        if kept:
            known["tiles"][key] = kept
    known["fused_up_to_rows"].update({key: where.up_to for key, where in kernels_run_at.items()})
    apart = {key: classes for key, classes in known.pop("apart", {}).items() if key not in kernels_run_at}
    apart |= {key: list(where.apart) for key, where in kernels_run_at.items() if where.apart}
    if apart:
        known["apart"] = apart
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, file)


def empty_table() -> dict[str, Any]:
    """A table without any GPU."""
    from variants.kernels.tile_table import SCHEMA

    return {"schema": SCHEMA, "gpus": {}}


def _line(key: str, rows: int, result: "Found") -> str:
    return (
        f"{key}, {rows} rows: {result.tile or 'the heuristic stays'}; best of {result.tried} tiles "
        f"{result.gain.value:.3f}x the heuristic's, {result.speedup.value:.3f}x what it replaces"
    )


if __name__ == "__main__":
    sys.exit(main())
