"""The rates of others, and the lines of the table, on times of our own."""

from types import SimpleNamespace

import pytest

from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.perf import ceilings_against
from ferrum_numba.perf.ceilings_against import Against, Other, lines


def test_the_rate_of_another_is_of_what_a_call_moves_or_computes():
    assert Other("copy", None, 2 * 2**30, "GB/s").rate(500.0) == pytest.approx(4294.967296)
    assert Other("mm", None, 2.0 * 8192**3, "TFLOP/s").rate(1000.0) == pytest.approx(1099.51, 1e-4)


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_ceiling_is_held_against_each_other(monkeypatch, seconds):
    copy = next(kernel for kernel in CEILINGS if kernel.name == "dram_copy")
    work = copy.op.work(copy.op.tests[-1])
    device = SimpleNamespace(gpu=KNOWN["h200"])
    other = Other("cudaMemcpy", "call", work.bytes, "GB/s")
    monkeypatch.setattr(ceilings_against, "best_calls", lambda *_: ["ours"])
    monkeypatch.setattr(ceilings_against, "in_turn", lambda *_: [100.0, 110.0])
    held = SimpleNamespace(us=120.0, clock_mhz=1500.0, power_w=600.0)
    monkeypatch.setattr(ceilings_against, "sustain", lambda *_: held)
    against = Against(("dram_copy", "no_such_kernel")[:1], [other])
    ((line, ratio),) = lines(device, against, seconds)
    assert ratio == pytest.approx(1.1)
    assert line.startswith("| dram_copy | DRAM | 5369 GB/s | cudaMemcpy | 4881 | 1.100 |")
    assert ("1.000 | 1500.0 MHz 600.0 W" in line) == bool(seconds)


def test_every_name_that_is_held_against_cublas_is_a_ceiling(monkeypatch):
    monkeypatch.setattr(ceilings_against, "gemms", lambda element: iter(()))
    named = {
        n for one in ceilings_against.contests(["fp16", "bf16", "fp8", "int8"]) for n in one.names
    }
    assert named <= {kernel.name for kernel in CEILINGS}
    assert len(named) == 16
