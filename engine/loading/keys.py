"""Typed reading of JSON objects: every fault is a ModelError that names the file, the key and the value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; a model folder needs it") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__}, not a JSON object")
    return raw


@dataclass(frozen=True)
class Keys:
    """Values of a JSON object by type. A null counts as absent; without a default an absent key is an error."""

    raw: Mapping[str, Any]
    source: str

    def size(self, key: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = self._get(key, default)
        if type(value) is not int or value < 1:
            raise ModelError(f"{self.source}: {key}={value!r} must be an integer of at least 1")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """An integer of at least 0."""
        value = self._get(key, default)
        if type(value) is not int or value < 0:
            raise ModelError(f"{self.source}: {key}={value!r} must be an integer of at least 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(f"{self.source}: {key}={value!r} must be a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.source}: {key}={value!r} must be true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of them; empty where the key is absent."""
        value = self.raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(item) is not int for item in ids):
            raise ModelError(f"{self.source}: {key}={value!r} must be a token id or a list of them")
        return tuple(ids)

    def _get(self, key: str, default: object) -> object:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.source}: {key} is missing")
        return value
