"""Who owns a kernel: eager, through CUDA graphs, across processes and threads."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.trace import attribution
from experiments.trace.attribution import Attribution, Owner, attribute
from experiments.trace.reader import Trace, read_trace

Synthetic = Callable[..., Any]
Place = tuple[str | None, int | None, str | None, str | None]


def places(trace: Trace) -> list[Place]:
    """(phase, step, layer, op) of every row of device work, in order of start."""
    found: Attribution = attribute(trace)
    rows = found.work[["launch", "place", "step"]].itertuples(index=False)
    known = [(found.owners[launch], found.owners[place], None if step < 0 else step) for launch, place, step in rows]
    return [(launch.phase, step, place.layer, place.op) for launch, place, step in known]


def test_a_layer_or_an_op_is_a_place_and_a_phase_is_none() -> None:
    assert [Owner.of(path).has_place for path in (["layer/0"], ["op/embed"], ["phase/forward", "step/0"], [])] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_innermost_range_of_each_kind_owns() -> None:
    path = ["cell/a.b", "phase/forward", "layer/2", "op/attention", "someone else's", "op/rope"]
    owner = Owner.of(path)
    assert (owner.cell, owner.phase, owner.layer, owner.op) == ("a.b", "forward", "2", "rope")
    assert owner.path == tuple(path)
    assert Owner.of(["phase", "op", "layer/embed"]) == Owner(path=("phase", "op", "layer/embed"), layer="embed")


def test_eager_kernels_belong_to_the_ranges_around_their_launch(synthetic: Synthetic, schema: str) -> None:
    export = synthetic(schema)
    export.range("step/0", 0, 100)
    export.range("phase/forward", 0, 90)
    export.range("layer/0", 5, 50)
    export.range("op/norm", 10, 20)
    # Launched in a range, run long after its end.
    export.call(1, 12, 14)
    export.kernel("norm", 1, 500, 510)
    export.call(2, 60, 61)
    export.kernel("tail", 2, 600, 610)
    export.call(3, 95, 96)
    export.kernel("between", 3, 700, 710)
    expected: list[Place] = [("forward", 0, "0", "norm"), ("forward", 0, None, None), (None, 0, None, None)]
    assert places(export.read()) == expected


def test_nodes_captured_in_the_window_belong_to_the_ranges_open_then(synthetic: Synthetic, schema: str) -> None:
    export = synthetic(schema)
    export.range("capture/b1", 0, 100)
    export.range("layer/0", 0, 40)
    export.range("op/norm", 10, 20)
    export.range("op/linear", 25, 35)
    export.node(101, 15)
    export.node(102, 30)
    export.node(201, 110, original=101)
    export.node(202, 111, original=102)
    for step, start in ((0, 200), (1, 300)):
        export.range(f"step/{step}", start, start + 50)
        export.range("phase/forward", start + 1, start + 40)
        export.call(step, start + 5, start + 9, name="cudaGraphLaunch_v10000")
        export.kernel("norm", step, start + 10, start + 20, graphNodeId=201)
        export.kernel("gemm", step, start + 20, start + 35, graphNodeId=202)
    expected: list[Place] = []
    for step in (0, 1):
        expected += [("forward", step, "0", "norm"), ("forward", step, "0", "linear")]
    assert places(export.read()) == expected


def test_nodes_captured_before_the_window_keep_only_their_launch(synthetic: Synthetic) -> None:
    export = synthetic()
    # Real exports list nodes made before the window, at negative times; the ranges of then are lost.
    export.node(101, -900)
    export.node(201, -800, original=101)
    export.range("step/4", 10, 60)
    export.range("phase/forward", 10, 60)
    export.call(1, 20, 25)
    export.kernel("listed", 1, 30, 40, graphNodeId=201)
    export.kernel("not listed", 1, 40, 50, graphNodeId=999)
    assert places(export.read()) == [("forward", 4, None, None)] * 2


def test_a_line_of_clones_is_followed_to_its_head_and_a_circle_has_none(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("op/norm", 0, 20)
    export.node(1, 10)
    for node in range(2, 6):
        export.node(node, 100, original=node - 1)
    export.node(8, 100, original=9)
    export.node(9, 100, original=8)
    export.range("step/0", 200, 300)
    export.call(1, 210, 220)
    export.kernel("cloned", 1, 230, 240, graphNodeId=5)
    export.kernel("circular", 1, 240, 250, graphNodeId=8)
    assert places(export.read()) == [(None, 0, None, "norm"), (None, 0, None, None)]


def test_a_capture_without_places_leaves_the_launch_to_say(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("capture/piece", 0, 20)
    export.node(1, 10)
    export.range("layer/7", 100, 150)
    export.call(1, 110, 120)
    export.kernel("piece", 1, 130, 140, graphNodeId=1)
    assert places(export.read()) == [(None, None, "7", None)]


def test_nested_ranges_of_one_name(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("op/norm", 0, 100)
    export.range("op/norm", 10, 20)
    export.range("op/norm", 10, 15)
    for correlation, start in ((1, 12), (2, 18), (3, 50), (4, 150)):
        export.call(correlation, start, start + 1)
        export.kernel("k", correlation, 1000 + correlation, 1001 + correlation)
    found = attribute(export.read())
    depths = [len(found.owners[place].path) for place in found.work["place"]]
    assert depths == [3, 2, 1, 0]


def test_an_open_range_owns_to_the_end(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("step/9", 0, None)
    export.range("op/norm", 10, 20)
    export.call(1, 1_000_000, 1_000_010)
    export.kernel("late", 1, 1_000_020, 1_000_030)
    assert places(export.read()) == [(None, 9, None, None)]


def test_processes_with_equal_correlation_ids_stay_apart(synthetic: Synthetic) -> None:
    export = synthetic()
    for process in (1, 2):
        export.range(f"op/of{process}", 0, 100, thread=(process, 7))
        export.call(5, 10, 20, thread=(process, 7))
        export.node(50, 40 + process, thread=(process, 7))
        export.kernel("eager", 5, 100 * process, 100 * process + 10, process=process)
        export.kernel("node", 5, 100 * process + 20, 100 * process + 30, process=process, graphNodeId=50)
    export.kernel("orphan", 5, 900, 910, process=3)
    ops = [op for _, _, _, op in places(export.read())]
    assert ops == ["of1", "of1", "of2", "of2", None]


def test_threads_of_one_process_stay_apart(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("op/main", 0, 100, thread=(1, 1))
    export.range("op/other", 0, 100, thread=(1, 2))
    export.call(1, 10, 11, thread=(1, 2))
    export.kernel("k", 1, 20, 30)
    # Captured by the main thread, replayed by the other one.
    export.node(70, 50, thread=(1, 1))
    export.kernel("replayed", 1, 30, 40, graphNodeId=70)
    assert [op for *_, op in places(export.read())] == ["other", "main"]


def test_ranges_that_start_and_end_anywhere_own_nothing(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("op/push", 0, 100)
    export.range("op/started", 5, 90, style=60)
    export.range("op/crossing", 5, 90, style=60, end_thread=(1, 2))
    export.call(1, 10, 11)
    export.kernel("k", 1, 20, 30)
    assert [op for *_, op in places(export.read())] == ["push"]


def test_a_whole_graph_belongs_to_its_launch(synthetic: Synthetic) -> None:
    export = synthetic()
    export.with_graph_trace()
    export.range("step/0", 0, 50)
    export.range("phase/forward", 0, 50)
    export.call(1, 10, 20)
    export.work("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", 1, 30, 90, graphId=4)
    assert places(export.read()) == [("forward", 0, None, None)]


def test_without_calls_or_ranges_nobody_owns_anything(synthetic: Synthetic) -> None:
    export = synthetic()
    export.kernel("k", 1, 20, 30)
    assert places(export.read()) == [(None, None, None, None)]


def test_a_real_trace_of_an_h200(h200: Path) -> None:
    """3 x (norm, linear) captured inside the window and replayed twice; step 0 replays a graph made before it."""
    found = places(read_trace(h200))
    warm_up, old, first, second = found[:2], found[2:10], found[10:18], found[18:]
    assert warm_up == [(None, None, None, None)] * 2
    assert old == [(None, 0, None, None)] * 8
    # The copy into a contiguous tensor that precedes norms 1 and 2 was launched inside their ranges.
    kinds = ["norm", "linear", "norm", "norm", "linear", "norm", "norm", "linear"]
    layers = ["0", "0", "1", "1", "1", "2", "2", "2"]
    for step, replay in ((1, first), (2, second)):
        assert replay == [(None, step, layer, op) for layer, op in zip(layers, kinds, strict=True)]


def lines_run(work: Callable[[], Any]) -> int:
    """Lines of experiments/trace that a call executes: the same however busy the machine is."""
    folder, before, count = str(Path(attribution.__file__).parent), sys.gettrace(), 0

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return look if frame.f_code.co_filename.startswith(folder) else None

    sys.settrace(look)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_long_traces_take_work_in_proportion(synthetic: Synthetic) -> None:
    """Ten times the rows, at most ten times the lines: a quadratic loop would run a hundred times as many."""

    def lines_of(num_steps: int) -> int:
        export = synthetic()
        thread, process = (1 << 48) | (1 << 24) | 1, (1 << 48) | (1 << 24)
        steps = range(num_steps)
        export.database.executemany(
            "INSERT INTO NVTX_EVENTS (start, end, eventType, globalTid, text) VALUES (?, ?, 59, ?, ?)",
            ((i * 10, i * 10 + 9, thread, f"step/{i}") for i in steps),
        )
        export.database.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 0, 0, NULL)",
            ((i * 10 + 2, i * 10 + 3, thread, i) for i in steps),
        )
        export.kernel("k", 0, 5, 8, graphNodeId=0)
        export.database.executemany(
            """INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL SELECT ?, ?, deviceId, contextId, greenContextId, streamId, ?, ?,
            demangledName, shortName, mangledName, launchType, cacheConfig, registersPerThread, gridX, gridY, gridZ,
            blockX, blockY, blockZ, staticSharedMemory, dynamicSharedMemory, localMemoryPerThread, localMemoryTotal,
            gridId, sharedMemoryExecuted, ?, sharedMemoryLimitConfig FROM CUPTI_ACTIVITY_KIND_KERNEL LIMIT 1""",
            ((i * 10 + 5, i * 10 + 8, i, process, i) for i in steps[1:]),
        )
        for i in steps[:100]:
            export.node(i, i * 10 + 1)
        path = export.close()
        assert attribute(read_trace(path)).work["step"].tolist() == list(steps)
        return lines_run(lambda: attribute(read_trace(path)))

    few, many = lines_of(2_000), lines_of(20_000)
    assert few < many <= 10 * few
