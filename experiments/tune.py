"""`fusebench tune`: search tiles for the fused linear layers on this GPU, and where fusing them pays.

fusebench tune models=[qwen3-0.6b]
fusebench tune models=[qwen3-8b] ops=[linear_add] rows=[1,2,4,8,16,32,64]

Writes variants/kernels/tiles.json after every shape: a tile where it beats the heuristic's beyond noise, and up to how
many rows each kernel is no slower than what it replaces. Tiles and dispatch look the GPU's name up there; on other GPUs
the heuristic goes on. Rows are powers of two, each standing for all down to the one before it.
"""

import json
import os
import sys
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
    from experiments.kernels.measure import Bench
    from experiments.kernels.search import Found

OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head")
TABLE = ROOT / "variants" / "kernels" / "tiles.json"


@dataclass(frozen=True)
class Options:
    """What can be set on the command line."""

    models: tuple[str, ...] = ("qwen3-0.6b",)
    ops: tuple[str, ...] = ()
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    dtype: str = "bfloat16"
    repeats: int = 20
    table: str = str(TABLE)


def parse(arguments: Sequence[str]) -> Options:
    """Options, checked but for the GPU."""
    options = parse_options(Options, "tune", arguments)
    choose("ops", options.ops, OPS)
    choose("dtype", (options.dtype,), ("bfloat16", "float16"))
    for rows in options.rows:
        if rows < 1 or rows & (rows - 1):
            raise UserError(f"tune: rows={rows} is no power of two")
    for model in options.models:
        if not find_model(model).sizes:
            raise UserError(f"models={model}: its sizes are not known without loading it; name one of configs/model")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Search; returns the exit code."""
    help_text = usage(__doc__, Options, OPS).replace(f"{ROOT}{os.sep}", "")
    return run_or_help(argv, help_text, lambda arguments: run(parse(arguments)))


def run(options: Options) -> int:
    """Every shape in turn, kept as soon as it is done."""
    if resolve_device("auto", machine()) != "cuda":
        raise UserError("tune needs a GPU: the times of twins choose nothing")
    import torch

    from experiments.kernels.measure import Bench
    from experiments.kernels.timing import l2_bytes, time_on_gpu

    device = torch.device("cuda")
    bench = Bench(device, options.dtype, time_on_gpu, options.repeats, l2_bytes(device))
    with torch.inference_mode():
        tune(options, bench, torch.cuda.get_device_name(device))
    return 0


def tune(options: Options, bench: "Bench", gpu: str) -> None:
    """Search every shape of the models once."""
    from experiments.kernels.cases import sites
    from variants.kernels.tile_table import key_of

    done: set[str] = set()
    for op in options.ops or OPS:
        for model in options.models:
            for shape in sites(op, find_model(model).sizes).values():
                if (key := key_of(op, *shape)) in done:
                    continue
                done.add(key)
                found = search_shape(op, shape, options.rows, bench)
                print("\n".join(_lines(key, found)), flush=True)
                keep(Path(options.table), gpu, key, found)


def search_shape(op: str, shape: tuple[int, ...], rows: Sequence[int], bench: "Bench") -> dict[int, "Found"]:
    """What each number of rows came to."""
    import torch

    from experiments.kernels.cases import CASES
    from experiments.kernels.linear_cases import LinearCase
    from experiments.kernels.search import Search

    found = {}
    for count in sorted(rows):
        case = CASES[op].draw(shape, count, getattr(torch, bench.dtype), bench.device, plain=True)
        assert isinstance(case, LinearCase)
        found[count] = Search(bench, case).run()
    return found


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


def keep(file: Path, gpu: str, key: str, found: Mapping[int, "Found"]) -> None:
    """Replace what the table has of these rows, whole or not at all; one that does not exist yet is made."""
    from variants.kernels.tile_table import SCHEMA

    table: dict[str, Any] = {"schema": SCHEMA, "gpus": {}}
    if file.exists():
        table = json.loads(file.read_text(encoding="utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    known = table["gpus"].setdefault(gpu, {"tiles": {}, "fused_up_to_rows": {}})
    tiles = {rows: tile for rows, tile in known["tiles"].pop(key, {}).items() if int(rows) not in found}
    tiles |= {str(rows): asdict(result.tile) for rows, result in found.items() if result.tile}
    if tiles:
        known["tiles"][key] = tiles
    bound = fused_up_to_rows({rows: result.pays for rows, result in found.items()})
    if bound is not None:
        known["fused_up_to_rows"][key] = bound
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, file)


def _lines(key: str, found: Mapping[int, "Found"]) -> list[str]:
    """A line for each number of rows."""
    return [
        f"{key}, {rows} rows: {result.tile or 'the heuristic stays'}; best of {result.tried} tiles "
        f"{result.gain.value:.3f}x the heuristic's, {result.speedup.value:.3f}x what it replaces"
        for rows, result in found.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
