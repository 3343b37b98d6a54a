"""perf/host_time.py: what it prints where there is no torch, by a driver of the host's memory."""

import re
import sys

import host_driver
import pytest

from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import Device
from ferrum_numba.perf import host_time


@pytest.fixture
def host(monkeypatch):
    host = host_driver.install(monkeypatch)
    monkeypatch.setattr("ferrum_numba.measure.timing.driver", host)
    monkeypatch.setattr(Device, "open", lambda: Device(0, KNOWN["h200"], None))
    # torch is there or not: without, launches alone are timed
    monkeypatch.setitem(sys.modules, "torch", None)
    return host


def build(host, kernel, config, arch):
    program = kernel.build(config, arch)
    host.kernels[kernel.name] = (program.parameters, lambda **values: None)
    return host_driver.binary(kernel.name, program.parameters, num_threads=program.num_threads)


def test_a_prepared_launch_is_compared_with_the_driver_s(host, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "build", lambda *of: build(host, *of))
    monkeypatch.setattr(host_time, "host_time_us", lambda call, stream: float(bool(call(stream))))
    launched = []
    monkeypatch.setattr(host, "launch", lambda *arguments: launched.append(arguments) or 0)
    host_time.main(["--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(
        r"NVIDIA H200, Python \d+\.\d+\.\d+.*: the host's time of a call, M = 1", lines[0]
    )
    assert lines[1] == "torch is not here: only launches are timed"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "the driver's launch alone", "a prepared launch",
    ]  # fmt: skip
    # each once to begin with, and in two rounds; the driver's alone as it was launched before
    assert len(launched) == 6
    assert launched[0] == launched[1]
