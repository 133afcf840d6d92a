"""Evidence around a block: on a CPU its memory; clocks where NVML is, never made up."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.measuring import telemetry
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.telemetry import Evidence

CPU = torch.device("cpu")


def test_a_cpu_has_memory_and_no_clocks() -> None:
    """The largest the process has been."""
    with Evidence(CPU) as evidence:
        torch.ones(1000)
    assert evidence.clocks == {}
    assert evidence.memory_bytes.keys() == {"peak_rss"}
    # This process holds PyTorch, and the machine has less than a terabyte.
    assert 50 * 2**20 < evidence.memory_bytes["peak_rss"] < 2**40


class FakeNvml(SimpleNamespace):
    """Readings as NVML gives them: megahertz, milliwatts, millijoules."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 1, 0
    NVMLError = RuntimeError

    def __init__(self, energies_mj: list[int | None]) -> None:
        super().__init__(energies_mj=energies_mj)

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        """By clock."""
        return (1980, 2619)[which]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        """Milliwatts."""
        return 512_345

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:
        """Degrees."""
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        """A bit mask."""
        return 4

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        """A counter, or an error where the GPU has none."""
        energy = self.energies_mj.pop(0)
        if energy is None:
            raise self.NVMLError
        return energy


@pytest.mark.parametrize(("energies_mj", "energy_j"), [([1000, 43_500], 42.5), ([None, None], None)])
def test_readings_have_their_units(
    energies_mj: list[int | None], energy_j: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watts, joules, degrees; energy is that of the block, and left out where there is no counter."""
    nvml: Any = FakeNvml(energies_mj)
    monkeypatch.setattr(telemetry, "_nvml_handle", lambda device: (nvml, "handle"))
    with Evidence(CPU) as evidence:
        pass
    expected = {
        "sm_mhz": 1980.0, "memory_mhz": 2619.0, "power_w": 512.345, "temperature_c": 61.0, "throttle_reasons": 4.0,
    }  # fmt: skip
    assert evidence.clocks == (expected if energy_j is None else {**expected, "energy_j": energy_j})


def test_no_ceiling_is_claimed_for_a_cpu() -> None:
    """Floors stand beside GPU times only."""
    assert measure_ceilings(CPU) == {}
