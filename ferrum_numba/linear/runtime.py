"""The GPUs that layers are on: each opened once, with its plans and its scratch."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import driver_present
from ferrum_numba.launch import Device, Scratch
from ferrum_numba.linear.launch_plan import LaunchPlans

_runtimes: dict[int, Runtime] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Runtime:
    """One GPU: what runs on it, and the scratch of its streams."""

    device: Device
    plans: LaunchPlans
    scratch: Scratch


def runtime(device: Any) -> Runtime | None:
    """Return the runtime of a device, None for the CPU.

    device: "cuda:1", "cuda" (the first), a number, "cpu", or anything that prints as one of these,
            such as a torch.device

    Raises:
        DeviceError: no such device.
    """
    text = str(device)
    if text == "cpu":
        return None
    match = re.fullmatch(r"(?:cuda:?)?(\d*)", text)
    if match is None or not text:
        raise DeviceError(f'a device is "cpu", "cuda", "cuda:1" or a number; got {device!r}')
    index = int(match[1] or 0)
    with _lock:
        if index not in _runtimes:
            # the thread's own device is its own affair, or torch's
            opened = _opened(index)
            scratch = Scratch(opened)
            _runtimes[index] = Runtime(opened, LaunchPlans(opened, scratch), scratch)
        return _runtimes[index]


def _opened(index: int) -> Device:
    try:
        return Device.open(index, current=False)
    except DeviceError as error:
        if driver_present():
            raise
        raise DeviceError(f'{error}; device="cpu" runs the reference on the CPU') from None
