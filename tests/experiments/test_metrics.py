"""The metric registry: values from raw samples, directions, and bounds."""

import pytest

from experiments.floors import Floor
from experiments.metrics import METRICS, Better, metrics_of, primary_metric
from experiments.records import Cell, CellResult, Point, Status
from experiments.stats import SampleError


def _result(workload: str, **samples: list[float]) -> CellResult:
    return CellResult(Cell(Point("tiny", workload, 4, 128), "fused", 0), Status.OK, samples=samples)


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        ("decode", "step_ms"),
        ("prefill", "ttft_ms"),
        ("shared_prefix", "warm_ttft_ms"),
        ("offline", "output_tokens_per_s"),
        ("serving", "itl_p50_ms"),
    ],
)
def test_each_workload_has_one_primary_metric_and_lists_it_first(workload: str, name: str) -> None:
    primary = primary_metric(workload)
    assert primary is not None
    assert primary.name == name
    assert next(m.name for m in metrics_of(workload)) == name
    assert sum(m.primary for m in metrics_of(workload)) == 1


def test_an_unknown_workload_has_no_metric() -> None:
    assert primary_metric("mystery") is None
    assert metrics_of("mystery") == []


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_what_it_is(name: str) -> None:
    m = METRICS[name]
    assert m.unit
    assert m.workloads
    assert len(m.definition) > 30


def test_a_value_is_the_median_of_the_samples_and_none_where_there_are_none() -> None:
    assert METRICS["step_ms"].value(_result("decode", step_ms=[3.0, 100.0, 2.0])) == 3.0
    assert METRICS["step_device_ms"].value(_result("decode", step_ms=[3.0])) is None


def test_rates_follow_from_the_time() -> None:
    assert METRICS["decode_tokens_per_s"].value(_result("decode", step_ms=[2.0])) == 2000.0
    assert METRICS["prefill_tokens_per_s"].value(_result("prefill", ttft_ms=[256.0])) == 2000.0


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")], [0.0], [-1.0, 1.0]])
def test_samples_that_no_clock_gives_are_refused(samples: list[float]) -> None:
    with pytest.raises(SampleError):
        METRICS["step_ms"].value(_result("decode", step_ms=samples))


def test_percentiles_of_serving_stand_only_where_n_supports_them() -> None:
    """The median always, p90 from 29 samples on, p99 from 299."""
    few, some, many = (_result("serving", itl_ms=[float(i) for i in range(1, n + 1)]) for n in (3, 101, 1001))
    assert [METRICS[f"itl_p{p}_ms"].value(few) for p in (50, 90, 99)] == [2.0, None, None]
    assert [METRICS[f"itl_p{p}_ms"].value(some) for p in (50, 90, 99)] == [51.0, 91.0, None]
    assert [METRICS[f"itl_p{p}_ms"].value(many) for p in (50, 90, 99)] == [501.0, 901.0, 991.0]
    assert METRICS["e2e_p50_ms"].value(few) is None, "not sampled"


def test_a_round_without_a_good_request_has_no_goodput() -> None:
    with pytest.raises(SampleError):
        METRICS["goodput_requests_per_s"].value(_result("serving", goodput_requests_per_s=[0.0, 2.0]))


def test_the_floor_of_serving_bounds_the_time_between_tokens_and_nothing_else() -> None:
    """One decode step is no bound of a first token's wait, nor of the tokens of a whole batch."""
    assert {m.name for m in metrics_of("serving") if m.bounded} == {"itl_p50_ms", "itl_p90_ms", "itl_p99_ms"}
    assert [m.name for m in metrics_of("shared_prefix") if m.bounded] == ["warm_ttft_ms"]


def test_floor_and_share_have_the_direction_of_the_metric() -> None:
    floor = Floor(1e9, 1e9, 0.5, "bytes", tokens=4)
    time, rate = METRICS["step_ms"], METRICS["decode_tokens_per_s"]
    assert (time.better, rate.better) == (Better.LOWER, Better.HIGHER)
    assert time.floor(floor) == 0.5
    assert rate.floor(floor) == 8000.0
    assert time.share_of_floor(2.0, 0.5) == rate.share_of_floor(2000.0, 8000.0) == 0.25
