"""The controls of compute-sanitizer: what the compiler makes of them anywhere, their answers on a Hopper GPU."""

from functools import partial

import pytest
import torch

from experiments.kernels.sanitizer_controls import PLANTED, RIGHT, launch_controls
from tests.engine.kernels.test_prefill_sm90 import on_hopper, with_gluon
from tests.kernel_aot import AotCase, compile_cases

COPY, WAIT, BARRIER = "cp.async.bulk.tensor", "mbarrier.try_wait", "bar.sync"


CASES = [
    AotCase(name, f"_{name.partition(' ')[0]}_control", partial(control, torch.device("cpu")))
    for name, control in (RIGHT | PLANTED).items()
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
