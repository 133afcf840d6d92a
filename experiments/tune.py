"""`fusebench tune`: search tiles for the fused linear layers on this GPU, and where fusing them pays.

fusebench tune models=[qwen3-0.6b]
fusebench tune models=[qwen3-8b] ops=[linear_add] rows=[1,2,4,8,16,32,64] time_budget_s=300

All candidates are compiled first, side by side, then timed one after the other on the idle GPU. Kernels that norm have
the form that they have behind linear_add, and fused kernels are launched with programmatic dependent launch (pdl): so
the variant `fused` runs them. What they replace is as the baseline runs it. With time_budget_s tiles for 1, 8 and 64
rows come first, and what is measured by then is kept; a bound needs all rows of its shape.

Writes variants/kernels/tiles.json after every point: a tile where it beats the heuristic's beyond noise, and up to how
many rows each kernel is no slower than what it replaces. Tiles and dispatch look the GPU's name up there; on other GPUs
the heuristic goes on. Rows are powers of two, each standing for all down to the one before it.
"""

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import run_or_help
from experiments.environment import ROOT, machine, resolve_device
from experiments.errors import UserError
from experiments.models import find_model
from experiments.options import choose, parse_options, usage

if TYPE_CHECKING:
    from experiments.kernels.compiling import Compile
    from experiments.kernels.measure import Bench
    from experiments.kernels.search import Found
    from experiments.kernels.timing import Timer

OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head")
TABLE = ROOT / "variants" / "kernels" / "tiles.json"
# The most of a time budget that compiling may take.
COMPILING_SHARE = 0.6


@dataclass(frozen=True)
class Options:
    """What can be set on the command line; a time budget of 0 is none."""

    models: tuple[str, ...] = ("qwen3-0.6b",)
    ops: tuple[str, ...] = ()
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    dtype: str = "bfloat16"
    repeats: int = 20
    pdl: bool = True
    time_budget_s: float = 0.0
    table: str = str(TABLE)


def parse(arguments: Sequence[str]) -> Options:
    """Options, checked but for the GPU."""
    options = parse_options(Options, "tune", arguments)
    choose("ops", options.ops, OPS)
    choose("dtype", (options.dtype,), ("bfloat16", "float16"))
    for rows in options.rows:
        if rows < 1 or rows & (rows - 1):
            raise UserError(f"tune: rows={rows} is no power of two")
    if options.time_budget_s < 0:
        raise UserError(f"tune: time_budget_s={options.time_budget_s:g} must not be negative")
    for model in options.models:
        if not find_model(model).sizes:
            raise UserError(f"models={model}: its sizes are not known without loading it; name one of configs/model")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    help_text = usage(__doc__, Options, OPS).replace(f"{ROOT}{os.sep}", "")
    return run_or_help(argv, help_text, lambda arguments: run(parse(arguments)))


def run(options: Options) -> int:
    """Every point in turn, kept as soon as it is measured."""
    if resolve_device("auto", machine()) != "cuda":
        raise UserError("tune needs a GPU: the times of twins choose nothing")
    import torch

    from experiments.kernels.compiling import compile_on_gpu
    from experiments.kernels.measure import Bench
    from experiments.kernels.timing import l2_bytes, time_on_gpu, time_quickly

    device = torch.device("cuda")
    bench = Bench(device, options.dtype, time_on_gpu, options.repeats, l2_bytes(device), pdl=options.pdl)
    with torch.inference_mode():
        tune(options, bench, torch.cuda.get_device_name(device), compile_on_gpu, time_quickly)
    return 0


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
            print(f"{point.key}, {point.rows} rows: not measured: {str(error).splitlines()[0]}", flush=True)
            continue
        mine = found[point.key]
        mine[point.rows] = result
        print(_line(point.key, point.rows, result), flush=True)
        keep(Path(options.table), gpu, point.key, mine, whole=len(mine) == len(set(options.rows)))
    print(f"{sum(map(len, found.values()))} points in {time.monotonic() - begin_s:.0f} s", flush=True)


def fused_up_to_rows(pays: Mapping[int, bool]) -> int | None:
    """The most rows up to which a kernel always pays; None where the rows are not all powers of two from 1 on."""
    counts = sorted(pays)
    if counts != [2**power for power in range(len(counts))]:
        return None
    most = 0
    for count in counts:
        if not pays[count]:
            break
        most = count
    return most


def keep(file: Path, gpu: str, key: str, found: Mapping[int, "Found"], whole: bool = True) -> None:
    """Replace what the table has of these rows, at once or not at all; a table that is not there is begun.

    Not `whole`: rows are missing yet, and the bound stays what it was.
    """
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else empty_table()
    file.parent.mkdir(parents=True, exist_ok=True)
    known = table["gpus"].setdefault(gpu, {"tiles": {}, "fused_up_to_rows": {}})
    tiles = {rows: tile for rows, tile in known["tiles"].pop(key, {}).items() if int(rows) not in found}
    tiles |= {str(rows): asdict(result.tile) for rows, result in found.items() if result.tile}
    if tiles:
        known["tiles"][key] = tiles
    bound = fused_up_to_rows({rows: result.pays for rows, result in found.items()})
    if whole and bound is not None:
        known["fused_up_to_rows"][key] = bound
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
