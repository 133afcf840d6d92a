"""What `trace` takes beyond the keys of an experiment."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from experiments.compose import suggest
from experiments.errors import UserError
from experiments.options import parse_options

PROFILERS = ("auto", "nsys", "torch", "ncu")
# ncu runs every kernel of a step many times, and they are the same in each.
COUNTED_STEPS = 1
MOST_STEPS = 200


@dataclass(frozen=True)
class Options:
    """As typed; see the usage in command.py. What is empty was not given."""

    profiler: str = "auto"
    steps: int = 8
    run: str = "latest"
    nsys: str = ""
    ncu: str = ""
    keep_raw: str = ""
    expect: tuple[str, ...] = ()
    read: str = ""
    against: str = ""


KEYS = frozenset(field.name for field in fields(Options))


def take_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Our own keys, and the arguments that are the experiment's. UserError for a value that does not fit."""
    keys = [argument.partition("=")[0] for argument in arguments]
    mine = [argument for argument, key in zip(arguments, keys, strict=True) if key in KEYS]
    rest = [argument for argument, key in zip(arguments, keys, strict=True) if key not in KEYS]
    options = parse_options(Options, "trace", mine)
    if (profiler := options.profiler) not in PROFILERS:
        raise UserError(f"profiler={profiler} is not one of {', '.join(PROFILERS)}{suggest(profiler, PROFILERS)}")
    if not 1 <= options.steps <= MOST_STEPS:
        raise UserError(f"steps={options.steps} must be a whole number from 1 to {MOST_STEPS}")
    if options.read and rest:
        raise UserError(f"read= takes an export as it is, so {rest[0]!r} has no meaning beside it")
    if options.against and not options.read:
        raise UserError("against= belongs to read=: two ledgers to compare")
    if profiler == "ncu" and "steps" not in keys:
        options = replace(options, steps=COUNTED_STEPS)
    return options, rest
