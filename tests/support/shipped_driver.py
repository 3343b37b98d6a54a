"""A GPU of host memory that takes real cubins and runs none: what a layer does to launch them."""

from importlib import import_module

import host_driver

from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import Device
from ferrum_numba.linear import runtime

GPU = KNOWN["h200"]


class ShippedDriver(host_driver.HostDriver):
    """launched: names of the kernels, in the order in which they were launched."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def cuLibraryLoadData(self, code, *options):
        return host_driver.SUCCESS, code

    def cuLibraryGetKernel(self, library, name):
        assert b".text." + name + b"\0" in library, "the cubin has a kernel of this name"
        entry = name.decode()
        self.kernels[entry] = ((), lambda: self.launched.append(entry))
        return host_driver.SUCCESS, entry


class ForGood:
    """What pytest's monkeypatch does, in a process without pytest, and for good."""

    def setattr(self, target, *rest):
        """Set an attribute of an object, or one that is named with its module."""
        if len(rest) == 2:
            setattr(target, *rest)
            return
        owner, _, name = target.rpartition(".")
        setattr(import_module(owner), name, *rest)


def install(monkeypatch):
    """Put such a GPU in the place of cuda:0, and return its driver."""
    host = ShippedDriver()
    for module in host_driver.MODULES:
        monkeypatch.setattr(f"ferrum_numba.launch.{module}.driver", host)
    monkeypatch.setattr("ferrum_numba.launch.direct.functions", lambda: host_driver.Library(host))
    monkeypatch.setattr("ferrum_numba.launch.direct.launcher", lambda: host.launch)
    monkeypatch.setattr(runtime, "_runtimes", {})
    monkeypatch.setattr(runtime.Device, "open", lambda index, current: Device(index, GPU, None))
    return host
