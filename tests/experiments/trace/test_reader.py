"""Reading exports: every schema, absent tables and columns, unsorted rows, texts of both kinds, files that are none."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.trace.reader import read_trace
from experiments.trace.schema import GPU_TABLES, OPEN_NS

Synthetic = Callable[..., Any]


def test_every_schema_reads_alike(synthetic: Synthetic, schema: str) -> None:
    export = synthetic(schema)
    export.range("step/0", 0, 100)
    export.call(7, 10, 20)
    export.node(5, 15)
    export.node(6, 18, original=5)
    export.kernel("gemm", 7, 30, 41, graphNodeId=6, gridX=3, blockX=128, registersPerThread=40, dynamicSharedMemory=9)
    trace = export.read()
    assert trace.schema == schema
    assert trace.product.startswith("202")
    kernel = {**trace.gpu.iloc[0], **trace.specs.iloc[0]}
    assert (kernel["start"], kernel["end"], kernel["node"], kernel["grid_x"], kernel["block_x"]) == (30, 41, 6, 3, 128)
    assert (kernel["registers"], kernel["static_shared"], kernel["dynamic_shared"]) == (40, 0, 9)
    assert trace.strings[kernel["short"]] == "gemm"
    assert trace.strings[kernel["name"]] == "void gemm<float>(int)"
    assert trace.nodes[["node", "original"]].to_numpy().tolist() == [[5, -1], [6, -1], [6, 5]]
    assert trace.calls[["start", "end", "correlation"]].to_numpy().tolist() == [[10, 20, 7]]


def test_texts_and_text_ids_name_ranges_alike(synthetic: Synthetic) -> None:
    export = synthetic()
    export.range("op/norm", 0, 10, registered=True)
    export.range("op/norm", 20, 30, registered=False)
    export.range("op/linear", 40, None, registered=False)
    export.domain("library", 3)
    trace = export.read()
    assert [trace.strings[name] for name in trace.ranges["name"]] == ["op/norm", "op/norm", "op/linear"]
    assert trace.ranges["end"].tolist() == [10, 30, OPEN_NS]
    assert list(trace.domains.values()) == ["library"]


def test_absent_tables_are_empty(synthetic: Synthetic, schema: str) -> None:
    export = synthetic(schema)
    for table in ("NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_MEMCPY", "ENUM_NSYS_EVENT_TYPE"):
        export.database.execute(f"DROP TABLE {table}")
    export.database.execute(f"DROP TABLE {export.nodes_table}")
    export.kernel("gemm", 7, 30, 41)
    trace = export.read()
    assert len(trace.gpu) == 1
    assert len(trace.calls) == len(trace.ranges) == len(trace.nodes) == 0
    assert trace.domains == {}


def test_absent_optional_columns_have_defaults(synthetic: Synthetic) -> None:
    export = synthetic()
    export.kernel("gemm", 7, 30, 41, graphNodeId=6)
    export.database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN graphNodeId")
    export.database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN registersPerThread")
    trace = export.read()
    assert (trace.gpu["node"].tolist(), trace.specs["registers"].tolist()) == ([-1], [0])


def test_an_absent_required_column_is_an_unknown_schema(synthetic: Synthetic) -> None:
    export = synthetic()
    export.kernel("gemm", 7, 30, 41)
    export.database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN start TO begin")
    with pytest.raises(UserError, match=r"KERNEL has no column start \(export schema 3\.7\.2"):
        export.read()


def test_rows_of_all_kinds_come_in_order_of_start(synthetic: Synthetic) -> None:
    export = synthetic()
    export.with_graph_trace()
    for start in (50, 10, 30):
        export.kernel("gemm", start, start, start + 5)
        export.work("CUPTI_ACTIVITY_KIND_MEMCPY", start + 1, start + 1, start + 2, copyKind=8)
    export.work("CUPTI_ACTIVITY_KIND_MEMSET", 99, 0, 4)
    export.work("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", 98, 20, 25, graphId=12)
    trace = export.read()
    assert trace.gpu["start"].tolist() == [0, 10, 11, 20, 30, 31, 50, 51]
    kinds = np.array(list(GPU_TABLES))[trace.of_gpu("kind")]
    assert kinds.tolist() == ["memset", "kernel", "memcpy", "graph", "kernel", "memcpy", "kernel", "memcpy"]
    assert trace.of_gpu("detail").tolist() == [-1, -1, 8, 12, -1, 8, -1, 8]


def test_only_calls_that_launched_something_are_kept(synthetic: Synthetic) -> None:
    export = synthetic()
    for correlation in range(50):
        export.call(correlation, 10 * correlation, 10 * correlation + 5)
    export.kernel("gemm", 17, 1000, 1001)
    assert export.read().calls["correlation"].tolist() == [17]


def test_strings_that_nobody_uses_stay_unread(synthetic: Synthetic) -> None:
    export = synthetic()
    export.string("SECRET_TOKEN=hunter2")
    export.kernel("gemm", 1, 10, 20)
    assert set(export.read().strings.values()) == {"gemm", "void gemm<float>(int)"}


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_trace(tmp_path / "absent.sqlite")
    report = tmp_path / "run.nsys-rep"
    report.write_bytes(b"\x93NSYS" * 100)
    with pytest.raises(UserError, match=r"nsys export -t sqlite run\.nsys-rep"):
        read_trace(report)
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with pytest.raises(UserError, match="not an SQLite file"):
        read_trace(empty)


def test_a_foreign_database_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "foreign.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()
    with pytest.raises(UserError, match="no nsys export"):
        read_trace(path)


def test_a_truncated_export_is_one_clear_line(synthetic: Synthetic) -> None:
    export = synthetic()
    for correlation in range(500):
        export.kernel("gemm", correlation, correlation, correlation + 1)
    path = export.close()
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="truncated") as caught:
            read_trace(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_page_is_one_clear_line(synthetic: Synthetic) -> None:
    export = synthetic()
    for correlation in range(500):
        export.kernel("gemm", correlation, correlation, correlation + 1)
    path = export.close()
    whole = bytearray(path.read_bytes())
    page_bytes = 4096
    for page in range(2, len(whole) // page_bytes):
        whole[page * page_bytes : page * page_bytes + 8] = b"\xff" * 8
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"export the \.nsys-rep again"):
        read_trace(path)
