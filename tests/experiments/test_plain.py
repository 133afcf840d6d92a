"""Plain data comes back as it went, and nothing else is let in."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from experiments import plain
from experiments.records import Cell, CellResult, Point, Status, Verdict

CELL = Cell(Point("tiny", "decode", 3, 17), "fused", 1)


def test_a_result_survives_json() -> None:
    verdict = Verdict(False, "wrong", 3, 0.5, math.inf, -math.inf, 2)
    result = CellResult(CELL, Status.INVALID, "r", "twin", {"step_ms": [1.5, 2.0]}, {"peak": 3}, verdict=verdict)
    text = json.dumps(plain.encode(result), allow_nan=False)
    assert plain.decode(CellResult, json.loads(text)) == result


def test_not_a_number_survives() -> None:
    decoded = plain.decode(Verdict, plain.encode(Verdict(True, "", 1, math.nan, 0.0, 0.0, 0)))
    assert math.isnan(decoded.top1_agreement)


@dataclass(frozen=True)
class Parts:
    """One field of every kind."""

    count: int = 0
    share: float = 0.0
    name: str = ""
    on: bool = False
    pairs: tuple[int, ...] = ()
    points: list[Point] = field(default_factory=list)
    switches: dict[str, bool] = field(default_factory=dict)
    maybe: Point | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"count": 1.5}, "Parts.count must be an integer"),
        ({"count": True}, "Parts.count must be an integer"),
        ({"share": "much"}, "Parts.share must be a number"),
        ({"share": False}, "Parts.share must be a number"),
        ({"name": 3}, "Parts.name must be a str"),
        ({"on": 1}, "Parts.on must be a bool"),
        ({"pairs": 3}, "Parts.pairs must be a list"),
        ({"pairs": [1, "2"]}, r"Parts.pairs\[1\] must be an integer"),
        ({"points": [{"model": "m"}]}, r"Parts.points\[0\] lacks 'batch'"),
        ({"switches": {"a": "yes"}}, "Parts.switches.a must be a bool"),
        ({"switches": []}, "Parts.switches must be a mapping"),
        ({"maybe": 3}, "Parts.maybe must be a mapping"),
        ({"cuont": 1}, "Parts has no key 'cuont'"),
        ([], "Parts must be a mapping"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plain.decode(Parts, data)


def test_an_unknown_status_is_named() -> None:
    data = plain.encode(CellResult(CELL, Status.OK)) | {"status": "fine"}
    with pytest.raises(ValueError, match="'fine' is not one of ok, oom"):
        plain.decode(CellResult, data)


def test_defaults_fill_what_is_missing() -> None:
    assert plain.decode(Parts, {"maybe": None, "anything": [1, {"a": 2}], "share": 3}) == Parts(
        share=3.0, anything=[1, {"a": 2}]
    )
