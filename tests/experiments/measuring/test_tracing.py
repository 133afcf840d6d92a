"""A cell run for a profiler, on a CPU: the window holds the cell, its steps, layers and ops."""

import json
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.measuring.offline import prepare
from experiments.measuring.tracing import trace
from experiments.messages import Trace
from experiments.records import Cell, Point
from tests.experiments.measuring.sessions import session_of, with_graphs


@pytest.mark.parametrize(("workload", "length"), [("decode", 24), ("prefill", 24), ("decode", 4096)])
def test_the_window_holds_the_steps(workload: str, length: int, tmp_path: Path) -> None:
    """As many as asked for, after the one that captures; at the model's last position too."""
    cell, path = Cell(Point("tiny", workload, 2, length), "baseline", 0), tmp_path / "trace.json"
    assert trace(session_of(), Trace(cell, 3, "torch", str(path))).steps == 3
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
    names = [event["name"] for event in events]
    assert names.count(f"cell/{cell.id}") == 1
    assert names.count("phase/forward") == 1 + 3
    for layer in ("embed", "0", "1", "head"):
        assert names.count(f"layer/{layer}") == 1 + 3
    attention = "op/decode_attention" if workload == "decode" else "op/prefill_attention"
    assert names.count(attention) == 2 * (1 + 3)


def test_steps_on_both_sides_of_a_table_s_width_are_captured_before(tmp_path: Path) -> None:
    """A graph each: among the steps that count a layer runs once a step, and is not captured."""
    cell, path = Cell(Point("tiny", "decode", 2, 128), "baseline", 0), tmp_path / "trace.json"
    assert trace(with_graphs(session_of()), Trace(cell, 8, "torch", str(path))).steps == 8
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
    replay = next(event for event in events if event["name"] == "replay")
    layers = [event["ts"] > replay["ts"] for event in events if event["name"] == "layer/0"]
    assert sum(layers) == 8
    # A capture runs through a layer twice, a replay on padding once.
    assert len(layers) - sum(layers) == 2 * 3 + 1


@pytest.mark.parametrize("graphs", [False, True])
def test_an_offline_cell_is_a_whole_run(graphs: bool, tmp_path: Path) -> None:
    """Every step of it, the kinds told apart; the graphs that it needs are captured before, layers and all."""
    cell, path = Cell(Point("tiny", "offline", 3, 0), "baseline", 0), tmp_path / "trace.json"
    session = with_graphs(session_of()) if graphs else session_of()
    traced = trace(session, Trace(cell, 8, "torch", str(path)))
    requests = prepare(session, cell.point)[1]
    run = traced.run
    assert run is not None
    assert traced.steps == len(run.decodes) == len(run.prefill_tokens)
    # The first token of each comes out of its prompt, all at once here.
    assert run.prefill_tokens == (sum(len(prompt) for prompt, _ in requests), *(0,) * (traced.steps - 1))
    assert sum(run.decodes) + len(requests) == run.output_tokens == sum(s.max_tokens for _, s in requests)
    assert traced.steps == max(s.max_tokens for _, s in requests)
    assert run.run_ms > 0
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
    replay = next(event for event in events if event["name"] == "replay")
    inside = [event["name"] for event in events if event["ts"] >= replay["ts"]]
    steps = [f"step/{run.first + i}" for i in range(traced.steps)]
    assert [name for name in inside if name.startswith("step/")][: traced.steps] == steps
    before = [event["name"] for event in events if event["ts"] < replay["ts"]]
    assert before.count("layer/0") >= graphs * 2 * (1 + (traced.steps > 1))


def test_ncu_takes_no_whole_run() -> None:
    """It runs every kernel many times."""
    with pytest.raises(UserError, match="a cell of kind offline cannot be traced by ncu"):
        trace(session_of(), Trace(Cell(Point("tiny", "offline", 3, 0), "baseline", 0), 3, "ncu"))
