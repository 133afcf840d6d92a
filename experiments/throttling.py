"""Why a GPU's clocks are lower than they could be, by NVML's names (nvmlClocksEventReason..., once
nvmlClocksThrottleReason...).

`THROTTLED` are those that make a measurement unlike another: heat, the power brake, and the slowdown that either of
them engages. Not among them:

- GpuIdle, ApplicationsClocksSetting, DisplayClockSetting, SyncBoost: how the machine is set up, the same for all cells;
- SwPowerCap: the board at its power limit, which is where compute-bound work belongs. It is the variant's own doing,
  and one that needs less power for the same work rightly gains from it.
"""

SW_POWER_CAP = 0x4
THROTTLED = {
    "HwSlowdown": 0x8,
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
    "HwPowerBrakeSlowdown": 0x80,
}


def throttled(reasons: int) -> list[str]:
    """The names of those bits that are in THROTTLED."""
    return [name for name, bit in THROTTLED.items() if reasons & bit]
