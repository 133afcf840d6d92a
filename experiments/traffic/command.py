"""`fusebench traffic`: the same traffic through several engines' schedulers and block managers, without a model.

Blocks held, wasted, shared and taken back, tokens computed twice, requests kept waiting: exact on any machine.

fusebench traffic
fusebench traffic engines=[ours,nano_vllm,vllm] nano_vllm_path=CHECKOUT

    engines=[ours]         ours, nano_vllm, vllm: the last two run their own code, from a checkout or the package
    nano_vllm_path=FOLDER  a checkout of nano-vLLM
    traffics=[...]         bench, tight, chat, arrivals; all unless given
    results_dir=results    the table goes to <results_dir>/traffic/<run_id>/traffic.json

An engine that cannot be had is a line that says why. Exit code 1 when any traffic was not served to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments import plain
from experiments.command_line import run_or_help
from experiments.durable import make_new_folder, write_json
from experiments.environment import code, run_id_of
from experiments.errors import UserError
from experiments.options import choose, parse_options
from experiments.reporting.terminal import make_console
from experiments.traffic.drive import drive
from experiments.traffic.nano_vllm import NanoVllm
from experiments.traffic.ours import Ours
from experiments.traffic.records import Books, Limits, Usage
from experiments.traffic.requests import TRAFFICS
from experiments.traffic.vllm import Vllm

ENGINES = ("ours", "nano_vllm", "vllm")


@dataclass(frozen=True)
class Options:
    """The keys of the usage above, as typed; no traffics are all of them."""

    engines: tuple[str, ...] = ("ours",)
    traffics: tuple[str, ...] = ()
    nano_vllm_path: str = ""
    results_dir: str = "results"


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown."""
    options = parse_options(Options, "traffic", arguments)
    engines = choose("engines", options.engines, ENGINES)
    if "nano_vllm" in engines and not options.nano_vllm_path:
        raise UserError("engines: nano_vllm needs nano_vllm_path=FOLDER, a checkout of it")
    return replace(options, engines=engines, traffics=choose("traffics", options.traffics, tuple(TRAFFICS)))


def main(argv: Sequence[str] | None = None) -> int:
    """Drive, print and store; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: run(parse(arguments)))


def run(options: Options) -> int:
    """Every engine under every traffic, stored as one file."""
    console = make_console()
    usages: list[Usage] = []
    folder = None
    for name in options.engines:
        for traffic in (TRAFFICS[traffic]() for traffic in options.traffics):
            try:
                books = _books(name, traffic.limits, options)
            except UserError as error:
                console.print(f"{name} is left out: {error}", markup=False)
                break
            folder = folder or _new_folder(options)
            usages.append(drive(books, name, traffic))
    if folder is None:
        console.print("nothing was measured, and nothing is kept", markup=False)
        return 1
    path = _store(folder, options, usages)
    _show(console, usages)
    console.print(f"kept in {path}", markup=False)
    return 0 if all(usage.answered == usage.requests for usage in usages) else 1


def _books(name: str, limits: Limits, options: Options) -> Books:
    """An engine's, empty; UserError where it cannot be had."""
    match name:
        case "nano_vllm":
            return NanoVllm(limits, Path(options.nano_vllm_path).expanduser())
        case "vllm":
            return Vllm(limits)
        case _:
            return Ours(limits)


def _new_folder(options: Options) -> Path:
    return make_new_folder(Path(options.results_dir) / "traffic" / run_id_of(datetime.now(UTC), code()))


def _store(folder: Path, options: Options, usages: Sequence[Usage]) -> Path:
    now, measured = datetime.now(UTC), code()
    made = {
        "schema": 1,
        "created": now.isoformat(timespec="seconds"),
        "commit": measured.commit,
        "dirty": measured.dirty,
    }
    traffics = {name: plain.encode(TRAFFICS[name]().description) for name in options.traffics}
    path = folder / "traffic.json"
    write_json(path, {**made, "traffics": traffics, "rows": [plain.encode(usage) for usage in usages]})
    return path


def _show(console: Console, usages: Sequence[Usage]) -> None:
    columns = ("traffic", "engine", "answered", "steps", "computed / needed", "reused", "preempted", "used", "waste")
    table = Table(*columns, "stalled steps", "longest stall")
    for u in usages:
        table.add_row(
            u.traffic,
            u.engine,
            f"{u.answered}/{u.requests}" + (f" ({u.reason})" if u.reason else ""),
            f"{u.steps:,}",
            f"{u.computed_tokens / u.needed_tokens:.3f}",
            f"{u.reused_tokens / u.needed_tokens:.1%}",
            f"{u.preemptions:,}",
            f"{u.mean_used:.1%}",
            f"{u.mean_waste:.2%}",
            f"{u.stalled_steps:,}",
            f"{u.longest_stall:,}",
        )
    console.print(table)
