"""Options of commands that compose no experiment: `key=value` words to a frozen dataclass of plain fields.

A choice of true or false may be typed as a flag, `--name`; a number that is no whole one as a share, `1%`.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from experiments.compose import suggest
from experiments.errors import UserError

T = TypeVar("T")
_INNER_LIST = re.compile(r"\[[^\[\]]*\]")


def parse_options(kind: type[T], command: str, arguments: Sequence[str]) -> T:
    """The dataclass with what was given; a tuple takes `[a,b]` or one value. UserError names the key and the mend."""
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if hints.get(flag := argument.removeprefix("--")) is bool and flag != argument:
            given[flag] = True
            continue
        if not equals:
            raise UserError(f"{command}: {argument!r} is not of the form key=value; the keys are {', '.join(hints)}")
        if key not in hints:
            raise UserError(f"{command}: unknown key {key!r}{suggest(key, hints)} (there are {', '.join(hints)})")
        given[key] = _typed(f"{command}: {key}={value}", value, hints[key])
    return kind(**given)


def words_of(options: Any) -> list[str]:
    """The arguments that parse to these options: a word for each that is not its default."""
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    defaults = {field.name: field.default for field in fields(options)}
    return [f"{key}={_word(value)}" for key, value in given.items() if value != defaults[key]]


def _word(value: object) -> str:
    return f"[{','.join(map(_word, value))}]" if isinstance(value, tuple) else str(value)


def keys_of(kind: type) -> str:
    """Every key with its default, as `--help` shows them; empty and () mean that the command chooses."""
    return "  ".join(f"{field.name}={_shown(field.default)}" for field in fields(kind))


def usage(words: str | None, kind: type, ops: Sequence[str] = ()) -> str:
    """The command's own words, then its ops and keys."""
    parts = [(words or "").strip(), "", *([f"ops: {', '.join(ops)}"] if ops else []), f"keys: {keys_of(kind)}"]
    return "\n".join(parts)


def choose(key: str, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """What was asked for, or all there is; UserError where something is not known."""
    for name in asked:
        if name not in known:
            raise UserError(f"{key}: there is no {name!r}{suggest(name, known)} (there are {', '.join(known)})")
    return tuple(asked or known)


def _typed(where: str, value: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        words = _lists(where, value) if get_origin(inner) is tuple else _unlisted(value).split(",")
        return tuple(_typed(where, word.strip(), inner) for word in words if word.strip())
    if kind is str:
        if not value:
            raise UserError(f"{where} has no value")
        return value
    if kind is float:
        return _number(where, value)
    loaded = _loaded(value)
    if type(loaded) is not kind:
        raise UserError(f"{where} is no {'whole number' if kind is int else 'choice of true or false'}")
    if kind is int and loaded < 0:
        raise UserError(f"{where} must not be negative")
    return loaded


def _loaded(value: str) -> Any:
    """What YAML makes of the value; the value itself where that is nothing."""
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value


def _unlisted(value: str) -> str:
    return value.removeprefix("[").removesuffix("]")


def _lists(where: str, value: str) -> list[str]:
    """The lists in a list; one alone needs none around it."""
    if _INNER_LIST.sub("", value).strip("[], "):
        raise UserError(f"{where} is no list of lists")
    return _INNER_LIST.findall(value)


def _number(where: str, value: str) -> float:
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise UserError(f"{where} is no number") from None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
