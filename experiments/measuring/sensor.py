"""One GPU as NVML sees it. What a driver does not tell is left out; nothing is made up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# Nanoseconds that the clocks were held down so far: they also tell of what came and went between two readings.
COUNTERS = {
    "SwThermalSlowdown": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "HwThermalSlowdown": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "HwPowerBrakeSlowdown": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}


@dataclass(frozen=True)
class Sensor:
    """NVML (the `pynvml` module) and a device's handle in it."""

    nvml: Any
    handle: Any

    def clocks(self) -> dict[str, float]:
        """`sm_mhz`, `memory_mhz`, `power_w`, `temperature_c`, and `throttle_reasons`, a mask of bits."""
        nvml, handle = self.nvml, self.handle
        read: dict[str, Callable[[], float]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        found = {name: self._told(get) for name, get in read.items()}
        return {name: float(value) for name, value in found.items() if value is not None}

    def reasons(self) -> int:
        """Why the clocks are where they are, a mask of bits; 0 where the driver does not say."""
        return self._told(lambda: int(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))) or 0

    def held_down_ns(self) -> dict[str, int]:
        """How long each reason of COUNTERS has held the clocks down so far; empty with drivers that do not count."""
        known = {name: getattr(self.nvml, field, None) for name, field in COUNTERS.items()}
        fields = {name: field for name, field in known.items() if field is not None}
        values = self._told(lambda: self.nvml.nvmlDeviceGetFieldValues(self.handle, list(fields.values()))) or ()
        return {
            name: int(value.value.ullVal)
            for name, value in zip(fields, values, strict=False)
            if value.nvmlReturn == self.nvml.NVML_SUCCESS
        }

    def energy_mj(self) -> float | None:
        """Millijoules since the driver was loaded."""
        return self._told(lambda: float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)))

    def processes(self) -> set[int]:
        """Processes with a compute context on the device, by the driver's ids, which differ from a container's."""
        listed = self._told(lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)) or ()
        return {int(process.pid) for process in listed}

    def _told(self, get: Callable[[], T]) -> T | None:
        try:
            return get()
        except self.nvml.NVMLError:
            return None


def sensor_of(device: torch.device) -> Sensor | None:
    """The sensor of a CUDA device; None on a CPU, or where there is no NVML."""
    nvml = _nvml() if device.type == "cuda" else None
    if nvml is None:
        return None
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return Sensor(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    except Exception:  # NVML fails in as many ways as there are drivers
        return None


def gpu_processes() -> set[int]:
    """Processes with a compute context on any GPU; needs no context of its own. Empty where there is no NVML."""
    nvml = _nvml()
    if nvml is None:
        return set()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return set()
    return set().union(*(Sensor(nvml, handle).processes() for handle in handles))


def _nvml() -> Any:
    """The `pynvml` module, ready, or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml
    except Exception:  # no package, no library, no driver
        return None
