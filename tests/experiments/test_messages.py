"""Every message survives the pipe, and nothing else on it is taken for one."""

import math
import subprocess
import sys

import pytest

from experiments.compose import compose
from experiments.messages import (
    Exit,
    Failed,
    Load,
    Measure,
    MeasureCeilings,
    Measured,
    Message,
    Progress,
    Rates,
    Ready,
    Rung,
    Traced,
    Verified,
    Verify,
    from_line,
    to_line,
)
from experiments.records import Cell, CellResult, Point, Status, Verdict

POINT = Point("tiny", "decode", 3, 17)
CELL = Cell(POINT, "fused", 2)
CONFIG = compose(["experiment=headline"])
LOAD = Load(
    "tiny", CONFIG.variants[-1], "cpu", "float32", "auto", 1, (POINT,), tuple(CONFIG.workloads), CONFIG.protocol
)
MESSAGES = [
    LOAD,
    Verify(),
    Measure(CELL),
    Exit(),
    Ready("random", "12ab", "twin", ("linear",), {"weights": 3}, {"includes": "all"}, (7,)),
    MeasureCeilings(),
    Rates({"read_bytes_per_s": 1.5e12}),
    Verified(Verdict(False, "why", 3, 0.5, math.inf, 1.0, 2)),
    Measured(CellResult(CELL, Status.OK, samples={"step_ms": [1.0, math.inf]})),
    Traced(CELL, 3, (Rung("norm_linear", "_norm_linear_kernel", True),)),
    Failed("oom", "näher\nbetrachtet"),
    Progress("capturing"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_line(message: Message) -> None:
    line = to_line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_line(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"3",
        b"{}",
        b'{"message": "dance"}',
        b'{"message": "measure"}',
        b'{"message": ["load"]}',
        b"\xff\xfe",
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        from_line(line)


def test_prints_of_the_worker_and_its_children_stay_off_the_pipe() -> None:
    program = (
        "import subprocess, sys\n"
        "from experiments.messages import Progress, worker_channel\n"
        "channel = worker_channel()\n"
        "print('printed'); subprocess.run(['echo', 'echoed']); assert sys.stdin.read() == ''\n"
        "channel.send(Progress(repr(channel.receive())))\n"
        "assert channel.receive() is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=to_line(Exit()), capture_output=True, check=True)
    assert done.stdout == to_line(Progress("Exit()"))
    assert set(done.stderr.decode().split()) == {"printed", "echoed"}
