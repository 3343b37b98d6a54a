"""What the board does while it is measured: clocks, power, temperature, through NVML.

Only ever read. NVML's C interface is called directly: it is the same in every version, and
cuda.bindings has it only in newer ones.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from ferrum_numba.gpu import full_uuid

_CLOCK_SM = 1
_CLOCK_MEMORY = 2
_SENSOR_GPU = 0
# bits of nvmlDeviceGetCurrentClocksThrottleReasons; an idle GPU is not a throttled one
_THROTTLE = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """The state of a board at one moment; None where NVML does not say.

    throttle: why the clocks are below the highest, if they are
    """

    clock_mhz: float | None = None
    memory_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()


def read_clocks(uuid: str, *, briefly: bool = False) -> Reading:
    """Return the present state of the GPU with this UUID; nothing but None without NVML.

    briefly: the SM clock and what holds it down, nothing else
    """
    board = _board(uuid)
    if board is None:
        return Reading()
    nvml, handle = board
    reasons = _query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, ctypes.c_ulonglong, handle)
    clock_mhz = _query(nvml.nvmlDeviceGetClockInfo, ctypes.c_uint, handle, _CLOCK_SM)
    if briefly:
        return Reading(clock_mhz, throttle=throttle_names(int(reasons or 0)))
    power_mw = _query(nvml.nvmlDeviceGetPowerUsage, ctypes.c_uint, handle)
    return Reading(
        clock_mhz=clock_mhz,
        memory_mhz=_query(nvml.nvmlDeviceGetClockInfo, ctypes.c_uint, handle, _CLOCK_MEMORY),
        power_w=None if power_mw is None else power_mw / 1000,
        temperature_c=_query(nvml.nvmlDeviceGetTemperature, ctypes.c_uint, handle, _SENSOR_GPU),
        throttle=throttle_names(int(reasons or 0)),
    )


def throttle_names(bits: int) -> tuple[str, ...]:
    """Return the names of the throttle reasons in an NVML bit mask."""
    return tuple(name for bit, name in _THROTTLE.items() if bits & bit)


def _query(function: Any, kind: Any, handle: Any, *args: int) -> float | None:
    value = kind()
    return float(value.value) if function(handle, *args, ctypes.byref(value)) == 0 else None


def _library() -> Any:
    return ctypes.CDLL("libnvidia-ml.so.1")


@cache
def _board(uuid: str) -> tuple[Any, Any] | None:
    """Return NVML and its handle of a GPU; None where there is no NVML or no such GPU."""
    try:
        nvml = _library()
    except OSError:
        return None
    handle = ctypes.c_void_p()
    name = full_uuid(uuid).encode()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        return None
    return nvml, handle
