"""What `trace` takes beyond the keys of an experiment."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compose import suggest
from experiments.errors import UserError

PROFILERS = ("auto", "nsys", "torch", "ncu")
KEYS = ("profiler", "steps", "run", "nsys", "ncu", "keep_raw", "expect", "read", "against")
DEFAULT_STEPS = 8
# ncu runs every kernel of a step many times, and they are the same in each.
COUNTED_STEPS = 1
MOST_STEPS = 200


@dataclass(frozen=True)
class Options:
    """The keys of KEYS, as typed; see the usage in command.py."""

    profiler: str = "auto"
    steps: int = DEFAULT_STEPS
    run: str = "latest"
    nsys: str | None = None
    ncu: str | None = None
    keep_raw: str | None = None
    expect: tuple[str, ...] = ()
    read: str | None = None
    against: str | None = None


def parse(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Our own keys, and the arguments that are the experiment's. UserError for a value that does not fit."""
    values: dict[str, str] = {}
    rest = []
    for argument in arguments:
        key, is_override, value = argument.partition("=")
        if is_override and key in KEYS:
            if not value:
                raise UserError(f"{key}= has no value")
            values[key] = value
        else:
            rest.append(argument)
    profiler = values.get("profiler", "auto")
    if profiler not in PROFILERS:
        raise UserError(f"profiler={profiler} is not one of {', '.join(PROFILERS)}{suggest(profiler, PROFILERS)}")
    if "read" in values and rest:
        raise UserError(f"read= takes an export as it is, so {rest[0]!r} has no meaning beside it")
    if "against" in values and "read" not in values:
        raise UserError("against= belongs to read=: two ledgers to compare")
    expect = tuple(name.strip() for name in values.get("expect", "").strip("[]").split(",") if name.strip())
    texts = {key: values.get(key) for key in ("nsys", "ncu", "keep_raw", "read", "against")}
    steps = _steps(values.get("steps"), COUNTED_STEPS if profiler == "ncu" else DEFAULT_STEPS)
    options = Options(profiler, steps, values.get("run", "latest"), expect=expect, **texts)
    return options, rest


def _steps(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STEPS:
        raise UserError(f"steps={text} must be a whole number from 1 to {MOST_STEPS}")
    return int(text)
