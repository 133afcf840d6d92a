"""A cell run for a profiler, on a CPU: the window holds the cell, its steps, layers and ops."""

import json
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.measuring.tracing import trace
from experiments.messages import Trace
from experiments.records import Cell, Point
from tests.experiments.measuring.sessions import session_of


@pytest.mark.parametrize(("workload", "length"), [("decode", 24), ("prefill", 24), ("decode", 4096)])
def test_the_window_holds_the_steps(workload: str, length: int, tmp_path: Path) -> None:
    """As many as asked for, after the one that captures; at the model's last position too."""
    cell, path = Cell(Point("tiny", workload, 2, length), "baseline", 0), tmp_path / "trace.json"
    assert trace(session_of(), Trace(cell, 3, "torch", str(path))) == 3
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
    names = [event["name"] for event in events]
    assert names.count(f"cell/{cell.id}") == 1
    assert names.count("phase/forward") == 1 + 3
    for layer in ("embed", "0", "1", "head"):
        assert names.count(f"layer/{layer}") == 1 + 3
    attention = "op/decode_attention" if workload == "decode" else "op/prefill_attention"
    assert names.count(attention) == 2 * (1 + 3)


def test_a_cell_that_is_not_one_step_is_refused() -> None:
    """Its window would hold a whole run."""
    with pytest.raises(UserError, match="a cell of kind offline is not one step"):
        trace(session_of(), Trace(Cell(Point("tiny", "offline", 3, 0), "baseline", 0), 3))
