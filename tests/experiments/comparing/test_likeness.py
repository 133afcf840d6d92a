"""What makes two runs unlike, and what may differ."""

from dataclasses import replace

import pytest

from experiments.comparing.likeness import changed, unlike
from tests.experiments.comparing.stored import H200, MACHINE, Made

H100 = replace(MACHINE, gpu=replace(H200, name="NVIDIA H100"))
LAPTOP = replace(MACHINE, gpu=None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Made(machine=H100), ["gpu was NVIDIA H200 and is NVIDIA H100"]),
        (Made(weights_hash="w2"), ["weights.tiny was w1 and is w2"]),
        (Made(overrides=("protocol.windows=9",)), ["protocol.windows was 2 and is 9"]),
        (Made(overrides=("workload.decode.kind=prefill",)), ["workload.decode.kind was decode and is prefill"]),
    ],
)
def test_unlike_runs_say_in_what(other: Made, says: list[str]) -> None:
    assert unlike(Made().manifest(), other.manifest()) == says


def test_a_model_of_other_sizes_is_another_model() -> None:
    """Real weights need not show it: what of a checkpoint was used depends on the sizes."""
    before = Made().manifest()
    after = replace(before, models={"tiny": {**before.models["tiny"], "sliding_window": 8}, "more": {"num_layers": 1}})
    assert unlike(before, after) == ["model.tiny.sliding_window was None and is 8"]


def test_a_gpu_and_a_cpu_differ_in_device_machine_and_dtype() -> None:
    found = "; ".join(unlike(Made().manifest(), Made(machine=LAPTOP).manifest()))
    for key in ("device", "gpu", "cpu", "dtype"):
        assert f"{key} was" in found


def test_two_laptops_differ_by_their_cpu_and_two_gpu_machines_do_not() -> None:
    old, new = Made(machine=LAPTOP).manifest(), Made(machine=replace(LAPTOP, cpu="B CPU")).manifest()
    assert unlike(old, new) == ["cpu was A CPU and is B CPU"]
    assert unlike(Made().manifest(), Made(machine=replace(MACHINE, cpu="B CPU")).manifest()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("protocol.rounds=9",),
        ("protocol.time_budget_s=5",),
        ("batches=[1,2,4]",),
        ("workloads=[decode,prefill]",),
        ("models=[tiny,tiny-llama]",),
        ("seed=3",),
    ],
)
def test_more_rounds_points_workloads_and_models_are_alike(overrides: tuple[str, ...]) -> None:
    assert unlike(Made().manifest(), Made(overrides=overrides).manifest()) == []


def test_code_software_driver_and_variants_are_what_may_change() -> None:
    newer = replace(MACHINE, gpu=replace(H200, driver="580.2"), packages={"torch": "2.14.0", "triton": "3.6.0"})
    other = Made(commit="bbbbbbb", machine=newer, overrides=("variant.fused.switches.lm_head=false",)).manifest()
    assert unlike(Made().manifest(), other) == []
    assert changed(Made().manifest(), other) == [
        "software.driver was 570.1 and is 580.2",
        "software.torch was 2.13.0 and is 2.14.0",
        "variant.fused.switches.lm_head was True and is False",
        "the code that is timed differs",
    ]
    assert changed(Made().manifest(), Made().manifest()) == []
