"""perf/moe_layer.py: what it prints, by the interpreter on a GPU of host memory."""

from types import SimpleNamespace

import gpu_of_host
import pytest

from ferrum_numba.launch import Device
from ferrum_numba.measure import Policy
from ferrum_numba.perf import moe_layer

SMALL = moe_layer.Shape(4, 2, 128, 128)


def measured(device, calls, regime, policy):
    """Stand in for the clock: every call runs, and took as many µs as there are."""
    assert regime == "cold"
    for call in calls:
        call(0)
    return SimpleNamespace(us=(float(len(calls)),))


def test_a_layer_is_timed_on_other_logits_each_time(monkeypatch, capsys):
    gpu = gpu_of_host.install(monkeypatch)
    monkeypatch.setattr(Device, "open", lambda *of, **options: gpu.device)
    monkeypatch.setattr("ferrum_numba.linear.runtime.Device.open", lambda *of, **how: gpu.device)
    monkeypatch.setattr(moe_layer, "SHAPES", {"small": SMALL})
    monkeypatch.setattr(moe_layer, "measure", measured)
    # one layer is enough, and two calls
    monkeypatch.setattr(Policy, "rotate_bytes", lambda self, gpu: 1)
    moe_layer.main(["--layer", "small", "--tokens", "1,3"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["small", "1", "tokens", "2.00", "us"]
    assert [line.split()[0] for line in printed] == [
        "small", "route_topk", "grouped_decode", "grouped_decode", "combine",
        "small", "route_topk", "align_tokens", "grouped_decode", "grouped_decode", "combine",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "megabytes"), [("qwen3", 19.5), ("mixtral", 181.7)])
def test_what_one_token_reads(name, megabytes):
    assert moe_layer.SHAPES[name].bytes_read(1) == pytest.approx(megabytes * 1e6, rel=1e-2)
