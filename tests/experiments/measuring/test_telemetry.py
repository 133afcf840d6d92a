"""Evidence around a cell and its windows: on a CPU its memory; clocks where NVML is, never made up; windows that are
unlike others are flagged, by the hardware's word."""

import os
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments import worker
from experiments.measuring import ceilings, presence, sensor, telemetry
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.guard import undisturbed
from experiments.measuring.presence import enter_gpu, others_on_gpu, own_pid
from experiments.measuring.sensor import Sensor, gpu_processes, sensor_of
from experiments.measuring.telemetry import Evidence, flag_drift, timed_window
from experiments.messages import Measure, Measured
from experiments.records import Cell, Point, Status, Window
from experiments.worker import Worker
from tests.engine.tiny import tiny_engine
from tests.experiments.measuring.sessions import PROTOCOL, load

CPU = torch.device("cpu")
READ = {"sm_mhz": 1980.0, "memory_mhz": 2619.0, "power_w": 512.345, "temperature_c": 61.0, "throttle_reasons": 4.0}
HW_THERMAL = 0x40


class FakeNvml(SimpleNamespace):
    """Readings as NVML gives them: megahertz, milliwatts, millijoules. Lists are read one by one, the last for ever."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_SUCCESS = 0, 1, 0, 0
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 252
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN = 253

    class NVMLError(Exception):
        """Not supported."""

    def __init__(self, **readings: list[int | None]) -> None:
        usual: dict[str, list[int | None]] = {"energy_mj": [1000, 43_500], "sm_mhz": [1980], "reasons": [4]}
        super().__init__(**usual | {"thermal_ns": [0], "pids": [7, 8]} | readings)

    def _next(self, values: list[int | None]) -> int:
        value = values.pop(0) if len(values) > 1 else values[0]
        if value is None:
            raise self.NVMLError
        return value

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        """By clock."""
        return 2619 if which else self._next(self.sm_mhz)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        """Milliwatts."""
        return 512_345

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:
        """Degrees."""
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        """A bit mask."""
        return self._next(self.reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        """A counter, or an error where the GPU has none."""
        return self._next(self.energy_mj)

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:
        """The thermal counter; the power brake's is not supported."""
        thermal = self.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN
        return [
            SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=self._next(self.thermal_ns)))
            if field == thermal
            else SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(ullVal=99))
            for field in fields
        ]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        """Their ids."""
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetCount(self) -> int:
        """Of GPUs."""
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        """Any."""
        return f"handle {index}"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives this machine a GPU with the readings that a test asks for, and a reading for every window."""

    def install(**readings: list[int | None]) -> FakeNvml:
        nvml = FakeNvml(**readings)
        monkeypatch.setattr(telemetry, "sensor_of", lambda device: Sensor(nvml, "handle"))
        monkeypatch.setattr(telemetry, "LEAST_S", 0.0)
        return nvml

    return install


def windows_of(count: int) -> list[Window]:
    with Evidence(CPU) as evidence:
        for _ in range(count):
            with timed_window():
                pass
    return evidence.windows


def test_a_cpu_has_memory_and_no_clocks() -> None:
    """The largest the process has been."""
    with Evidence(CPU) as evidence, timed_window():
        torch.ones(1000)
    assert evidence.clocks == {}
    assert evidence.windows == []
    assert evidence.processes == set()
    assert evidence.memory_bytes.keys() == {"peak_rss"}
    # This process holds PyTorch, and the machine has less than a terabyte.
    assert 50 * 2**20 < evidence.memory_bytes["peak_rss"] < 2**40


def test_where_there_is_no_nvml_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a CPU nor on a GPU without the package."""
    monkeypatch.setattr(sensor, "_nvml", lambda: None)
    assert sensor_of(CPU) is None
    assert sensor_of(torch.device("cuda")) is None
    assert gpu_processes() == set()


@pytest.mark.parametrize(("energy_mj", "energy_j"), [([1000, 43_500], 42.5), ([None], None)])
def test_readings_have_their_units(gpu: Any, energy_mj: list[int | None], energy_j: float | None) -> None:
    """Watts, joules, degrees; energy is that of the block, and left out where there is no counter."""
    gpu(energy_mj=energy_mj)
    with Evidence(CPU) as evidence:
        pass
    assert evidence.clocks == (READ if energy_j is None else {**READ, "energy_j": energy_j})
    assert evidence.processes == {7, 8}


def test_what_a_driver_does_not_say_is_left_out(gpu: Any) -> None:
    """And costs no cell."""
    gpu(sm_mhz=[None], reasons=[None])
    with Evidence(CPU) as evidence, timed_window():
        pass
    assert evidence.clocks.keys() == READ.keys() - {"sm_mhz", "throttle_reasons"} | {"energy_j"}
    assert evidence.windows[0].flags == []


def test_every_timed_window_has_a_reading(gpu: Any) -> None:
    """Taken by the guard, whatever the workload; the power limit alone flags nothing."""
    gpu()
    engine = tiny_engine()
    with Evidence(CPU) as evidence:
        for _ in range(3):
            with undisturbed(engine):
                pass
    assert evidence.windows == [Window(READ)] * 3
    with undisturbed(engine):
        pass
    assert len(evidence.windows) == 3


def test_short_windows_share_a_reading(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML takes up to a millisecond, which many short windows must not pay each."""
    gpu()
    monkeypatch.setattr(telemetry, "LEAST_S", 3600.0)
    assert len(windows_of(50)) == 1


@pytest.mark.parametrize(
    ("readings", "flags"),
    [
        # Before and after each of two windows.
        ({"reasons": [0, 0, HW_THERMAL, 0]}, [[], ["throttled: HwThermalSlowdown"]]),
        ({"reasons": [0, 0x20, 0, 0]}, [["throttled: SwThermalSlowdown"], []]),
        ({"reasons": [0, 0x88, 0x1, 0x2]}, [["throttled: HwPowerBrakeSlowdown", "throttled: HwSlowdown"], []]),
        ({"reasons": [0x1 | 0x2 | 0x4 | 0x10 | 0x100]}, [[], []]),
        # Nothing at either end, but the counter says that it happened in between.
        ({"reasons": [0], "thermal_ns": [5, 5, 900]}, [[], ["throttled: HwThermalSlowdown"]]),
    ],
)
def test_windows_in_which_the_gpu_throttled_are_flagged(gpu: Any, readings: dict[str, Any], flags: list[Any]) -> None:
    """By the reason's name, at either end or in between."""
    gpu(**readings)
    assert [window.flags for window in windows_of(2)] == flags


def test_a_window_off_the_usual_clock_is_flagged() -> None:
    """By more than 3 %, unless the board was at its power limit, where clocks are regulated all the time."""
    clocks = (1980, 1980, 1935, 1800)
    windows = [Window({"sm_mhz": float(mhz), "throttle_reasons": 0.0}) for mhz in clocks]
    assert [window.flags for window in flag_drift(windows)] == [[], [], [], ["SM clock off by 8 %"]]
    capped = [Window({"sm_mhz": float(mhz), "throttle_reasons": 4.0}) for mhz in clocks]
    assert flag_drift(capped) == capped
    assert flag_drift([Window({})]) == [Window({})]


def measured(monkeypatch: pytest.MonkeyPatch, repeats: int, timeout_s: float = 600.0) -> Any:
    """What a worker answers to a cell of one decode window."""
    protocol = replace(PROTOCOL, windows=1, flagged_repeats=repeats, cell_timeout_s=timeout_s)
    monkeypatch.setattr(worker, "enter_gpu", lambda device: os.getpid())
    serving = Worker()
    serving.answer(load(protocol=protocol))
    answer = serving.answer(Measure(Cell(Point("tiny", "decode", 2, 24), "baseline", 0), ours=(7,)))
    assert isinstance(answer, Measured)
    assert answer.result.status is Status.OK
    return answer.result


def test_a_flagged_cell_is_measured_again_and_nothing_is_dropped(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice throttled, then not: the third attempt counts, the others are kept with their samples and reasons."""
    # Each attempt reads before and after its window, and once more at its end.
    gpu(reasons=[0, HW_THERMAL, 0, 0, HW_THERMAL, 0, 0])
    result = measured(monkeypatch, repeats=3)
    assert result.flags == []
    assert len(result.samples["step_ms"]) == len(result.windows) == 1
    assert [attempt.windows[0].flags for attempt in result.set_aside] == [["throttled: HwThermalSlowdown"]] * 2
    assert all(len(attempt.samples["step_ms"]) == 1 for attempt in result.set_aside)


@pytest.mark.parametrize(("repeats", "timeout_s", "again"), [(2, 600.0, 2), (0, 600.0, 0), (2, 1e-3, 0)])
def test_a_gpu_that_never_recovers_costs_the_budget_and_says_so(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, repeats: int, timeout_s: float, again: int
) -> None:
    """The last attempt counts, flagged; none is begun that the cell's timeout would cut off."""
    gpu(reasons=[HW_THERMAL])
    result = measured(monkeypatch, repeats, timeout_s)
    assert len(result.set_aside) == again
    assert result.flags == ["throttled: HwThermalSlowdown"]
    assert len(result.samples["step_ms"]) == 1


def test_other_processes_are_those_that_are_not_ours(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two on the GPU, of which one is a worker of this sweep."""
    gpu(pids=[7, 9, 11])
    assert measured(monkeypatch, repeats=0).other_processes == 2


def test_a_worker_finds_its_own_id_in_a_container_too() -> None:
    """There the driver has another number for it: the one that came while it loaded."""
    here = os.getpid()
    assert own_pid({1}, {1, here}) == here
    assert own_pid({1}, {1, 4711}) == 4711
    assert own_pid({1}, {1}) is None
    assert own_pid(set(), {4, 5}) is None


def test_workers_that_load_side_by_side_enter_the_gpu_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two would come at once, and a container could not tell which is which."""
    on_gpu: set[int] = set()
    coming = iter((7, 9))
    first_is_in, second_may = threading.Event(), threading.Event()

    def open_context(*_: Any, **__: Any) -> None:
        on_gpu.add(next(coming))
        if not first_is_in.is_set():
            first_is_in.set()
            assert not second_may.wait(0.2), "the other one came meanwhile"

    monkeypatch.setattr(presence.torch, "zeros", open_context)
    monkeypatch.setattr(presence, "gpu_processes", lambda: set(on_gpu))
    found: dict[str, int | None] = {}

    def enter(who: str) -> None:
        found[who] = enter_gpu(torch.device("cuda"))

    first = threading.Thread(target=enter, args=("first",))
    first.start()
    assert first_is_in.wait(30)
    enter("second")
    second_may.set()
    first.join()
    assert found == {"first": 7, "second": 9}
    assert enter_gpu(CPU) is None


@pytest.mark.parametrize(("pids", "others"), [([], None), ([7], 0), ([7, 9, 11], 2)])
def test_who_is_on_the_gpu_has_others_beside_it(
    pids: list[int | None], others: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that lists not even this one does not tell."""
    monkeypatch.setattr(presence, "sensor_of", lambda device: Sensor(FakeNvml(pids=pids), "handle"))
    assert others_on_gpu(torch.device("cuda")) == others
    monkeypatch.setattr(presence, "sensor_of", lambda device: None)
    assert others_on_gpu(torch.device("cuda")) is None


def test_processes_are_listed_on_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a context of one's own."""
    monkeypatch.setattr(sensor, "_nvml", FakeNvml)
    assert gpu_processes() == {7, 8}


def test_no_ceiling_is_claimed_for_a_cpu() -> None:
    """Floors stand beside GPU times only."""
    assert measure_ceilings(CPU) == {}


def test_a_ceiling_is_what_a_warm_gpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at_s = 0.0

        def record(self) -> None:
            self.at_s = now_s

        def elapsed_time(self, later: "Event") -> float:
            return (later.at_s - self.at_s) * 1e3

    def run() -> None:
        nonlocal now_s
        # Clocks that are still low for a fifth of a second.
        now_s += 0.010 if now_s < 0.2 else 0.001

    monkeypatch.setattr(ceilings, "time", SimpleNamespace(perf_counter=lambda: now_s))
    monkeypatch.setattr(ceilings.torch.cuda, "Event", Event)
    monkeypatch.setattr(ceilings.torch.cuda, "synchronize", lambda: None)
    assert ceilings._best_s(run) == pytest.approx(0.001)
