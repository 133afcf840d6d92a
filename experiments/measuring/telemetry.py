"""What the GPU was doing while it was measured: clocks, power, temperature, throttling, energy, memory."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch


def _nvml_handle(device: torch.device) -> Any:
    """NVML and the device's handle, or None where NVML cannot be had: evidence is then missing, not faked."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    except Exception:  # NVML fails in as many ways as there are drivers
        return None


@dataclass
class Evidence:
    """Readings around a block: `clocks` (sm_mhz, memory_mhz, power_w, temperature_c, throttle_reasons, energy_j)."""

    device: torch.device
    clocks: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "Evidence":
        self._nvml = _nvml_handle(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start_mj = self._energy_mj()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
            self.memory_bytes = {
                "allocated": torch.cuda.max_memory_allocated(self.device),
                "reserved": torch.cuda.max_memory_reserved(self.device),
                "device": total_bytes - free_bytes,
            }
        else:
            self.memory_bytes = {"peak_rss": _peak_rss_bytes()}
        if self._nvml:
            nvml, handle = self._nvml
            self.clocks = {
                "sm_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                "memory_mhz": float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
                "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
                "temperature_c": float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                "throttle_reasons": float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            }
            end_mj = self._energy_mj()
            if self._start_mj is not None and end_mj is not None:
                self.clocks["energy_j"] = (end_mj - self._start_mj) / 1e3

    def _energy_mj(self) -> float | None:
        if not self._nvml:
            return None
        nvml, handle = self._nvml
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError:
            return None


def _peak_rss_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
