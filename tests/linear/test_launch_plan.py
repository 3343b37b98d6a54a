"""A plan's launches on a stream that several threads share."""

import threading
import time
from types import SimpleNamespace

import gpu_of_host
import pytest
from quantised import layer, rows

from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.launch_plan import LaunchPlan

THREADS, CALLS = 4, 50


def launched(lock):
    """Return which thread's launches were made, in order, by threads that call one plan."""
    found = []

    def launch(stream, x, out, operands):
        found.append(x)
        # another thread may go on here, as it does while the driver launches
        time.sleep(0)

    plan = LaunchPlan((launch, launch), 0, None, SimpleNamespace(), None, lock)

    def calls(number):
        for _ in range(CALLS):
            plan(0, number, 0, b"")

    threads = [threading.Thread(target=calls, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_launches_that_pass_each_other_scratch_keep_together():
    found = launched(threading.RLock())
    assert len(found) == 2 * THREADS * CALLS
    assert found[::2] == found[1::2]


@pytest.mark.parametrize(("kind", "locked"), [({}, False), ({"act_order": True}, True)], ids=str)
def test_only_several_launches_have_a_lock(monkeypatch, kind, locked):
    gpu_of_host.install(monkeypatch)
    linear = MarlinLinear.from_gptq(layer(128, 64, 64, **kind))
    linear(rows(3, 128))
    plan = linear._gemm.plans[3]
    assert (plan.lock is not None) is locked
