"""The controls of compute-sanitizer: what the compiler makes of them anywhere, their answers on a Hopper GPU."""

import pytest
import torch

from experiments.kernels.sanitizer_controls import RIGHT, exchange, launch_controls
from tests.engine.kernels.test_prefill_sm90 import on_hopper, with_gluon
from tests.kernel_aot import AotCase, compile_cases

TYPES = {
    "x_desc": "tensordesc<bf16[64, 64],NVMMASharedLayout(128, 16)>",
    "y_ptr": "*bf16:16",
    "num_tiles": "i32",
}
COPY, WAIT, BARRIER = "cp.async.bulk.tensor", "mbarrier.try_wait", "bar.sync"


def aot(name: str, kernel: str, **constexprs: object) -> AotCase:
    return AotCase(name, f"experiments.kernels.sanitizer_controls:_{kernel}_control", TYPES, constexprs)


CASES = [
    aot("exchanged", "exchanged", ASM=exchange(True)),
    aot("exchanged without barrier", "exchanged", ASM=exchange(False)),
    aot("handed_over", "handed_over"),
    aot("one_tile", "one_tile", WAITS=True),
    aot("one_tile without wait", "one_tile", WAITS=False),
    aot("ring", "ring"),
    aot("specialised", "specialised"),
]


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    return {name: resources.ptx for name, resources in compile_cases(CASES).items()}


@with_gluon
def test_a_planted_race_lacks_one_thing_that_its_control_has(ptx: dict[str, str]) -> None:
    def between(name: str, first: str, last: str) -> str:
        return ptx[name].rpartition(last)[0].rpartition(first)[2]

    assert BARRIER in between("exchanged", "st.shared", "ld.shared")
    assert BARRIER not in between("exchanged without barrier", "st.shared", "ld.shared")
    assert WAIT in ptx["one_tile"].partition(COPY)[2].partition("ld.shared")[0]
    assert WAIT not in ptx["one_tile without wait"].partition(COPY)[2].partition("ld.shared")[0]
    # Both are waited for in the end: a copy would outlive its program.
    assert WAIT in ptx["one_tile without wait"].rpartition("ld.shared")[2]


@with_gluon
def test_each_control_has_what_it_is_named_for_and_no_more(ptx: dict[str, str]) -> None:
    marks = (COPY, "mbarrier.arrive.shared::cta", "setmaxnreg")
    has = {name: tuple(mark in text for mark in marks) for name, text in ptx.items()}
    assert has["exchanged"] == (False, False, False)
    assert has["handed_over"] == (False, False, True)
    assert has["one_tile"] == has["ring"] == (True, False, False)
    assert has["specialised"] == (True, True, True)
    assert set(RIGHT) <= ptx.keys()


@on_hopper
@pytest.mark.parametrize("planted", [False, True])
def test_controls_run_and_right_ones_answer_right(planted: bool) -> None:
    launch_controls(torch.device("cuda"), planted)
    torch.cuda.synchronize()
