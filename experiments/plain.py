"""Frozen dataclasses to and from plain JSON data, strictly: an unknown key, a missing key or a wrong type is an error.

Messages, cell files and manifests are all written by this one pair of functions. JSON knows no infinity and no NaN;
they travel as the strings of `_NON_FINITE` so that every file stays valid JSON.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """Dataclasses, enums, tuples, lists, dicts and scalars as JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def decode(kind: type[T], data: Any) -> T:
    """JSON data as a value of type `kind`; ValueError says which key of which type does not fit."""
    return typing.cast(T, _decode(kind, data, kind.__name__))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_optional(arguments, data, where)
    if origin is dict:
        _expect(isinstance(data, dict), "a mapping", data, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if origin in (list, tuple):
        _expect(isinstance(data, list | tuple), "a list", data, where)
        return origin(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    return _decode_scalar(kind, data, where)


def _decode_dataclass(kind: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), "a mapping", data, where)
    hints, required = _fields(kind)
    if unknown := data.keys() - hints.keys():
        raise ValueError(f"{where} has no key {min(unknown)!r}")
    if missing := required - data.keys():
        raise ValueError(f"{where} lacks {min(missing)!r}")
    return kind(**{key: _decode(hints[key], item, f"{where}.{key}") for key, item in data.items()})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of every field, and the fields without a default."""
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = frozenset(f.name for f in fields if f.default is missing and f.default_factory is missing)
    return typing.get_type_hints(kind), required


def _decode_optional(members: tuple[Any, ...], data: Any, where: str) -> Any:
    """`X | None`: the only union that plain data needs."""
    if data is None and type(None) in members:
        return None
    return _decode(next(member for member in members if member is not type(None)), data, where)


def _decode_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        data = _NON_FINITE.get(data, data) if isinstance(data, str) else data
        _expect(isinstance(data, int | float) and not isinstance(data, bool), "a number", data, where)
        return float(data)
    if kind is int:
        _expect(isinstance(data, int) and not isinstance(data, bool), "an integer", data, where)
        return data
    if issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            raise ValueError(f"{where}={data!r} is not one of {', '.join(m.value for m in kind)}") from None
    _expect(isinstance(data, kind), f"a {kind.__name__}", data, where)
    return data


def _expect(holds: bool, what: str, data: Any, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {what}, not {data!r}")
