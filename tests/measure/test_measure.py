"""Regimes, rotation, warm-up and clocks, on a driver of simulated time."""

import host_driver
import pytest
from cuda.bindings import driver

from ferrum_numba.contract import Launch
from ferrum_numba.errors import ConfigError, LaunchError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import load
from ferrum_numba.measure import Policy, Reading, clocks, host_time_us, measure, timing
from ferrum_numba.measure.clocks import read_clocks, throttle_names
from ferrum_numba.measure.timing import rounds_to_fill

QUICK = Policy(samples=7, min_graph_us=100.0, warmup_ms=50.0)


@pytest.fixture
def host(monkeypatch):
    """A driver whose launches take 5 us and note which copy they ran on."""
    host = host_driver.install(monkeypatch, launch_us=5.0)
    monkeypatch.setattr("ferrum_numba.measure.timing.driver", host)
    host.ran = []
    parameters = host_driver.parameters([], ["copy"])
    host.kernels = {"note": (parameters, lambda copy: host.ran.append(copy))}
    monkeypatch.setattr(timing, "read_clocks", lambda *_, **__: Reading(clock_mhz=1980.0))
    return host


def rotation(host, copies):
    loaded = load(host_driver.binary("note", host.kernels["note"][0]), host.device())
    return [loaded.prepare(Launch((1, 1, 1), {"copy": i}), {}) for i in range(copies)]


@pytest.mark.parametrize(("regime", "copies"), [("cold", 3), ("warm", 1), ("eager", 3)])
def test_a_regime_takes_whole_rotations_and_divides_by_the_calls(host, regime, copies):
    samples = measure(host.device(), rotation(host, 3), regime, QUICK)
    assert samples.us == pytest.approx((5.0,) * 7)
    # 100 us are 20 calls; whole rotations of 3 make it 21
    assert samples.calls == {"cold": 21, "warm": 20, "eager": 21}[regime]
    assert samples.regime == regime
    replay = [i % copies for i in range(samples.calls)]
    assert host.ran[-7 * samples.calls :] == replay * 7


@pytest.mark.parametrize(("regime", "graphs"), [("cold", True), ("warm", True), ("eager", False)])
def test_only_eager_launches_from_the_host(host, regime, graphs):
    measure(host.device(), rotation(host, 2), regime, QUICK)
    assert ("graph of 20" in host.log) == graphs


def test_nothing_is_left_behind(host):
    measure(host.device(), rotation(host, 2), "cold", QUICK)
    assert host.events == {}
    assert host.graphs == {}
    assert "destroy stream 1002" in host.log


def test_a_kernel_that_fails_leaves_no_events_behind(host):
    host.fail["cuEventSynchronize"] = driver.CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(
        LaunchError, match="cuEventSynchronize failed with CUDA_ERROR_LAUNCH_FAILED"
    ):
        measure(host.device(), rotation(host, 2), "cold", QUICK)
    assert host.events == {}


def test_a_timer_captures_once_and_counts_all_that_the_gpu_did(host):
    with timing.Timer(host.device(), rotation(host, 2), "cold", QUICK) as timer:
        before = len(host.ran)
        first = timer.take(3, 0.0)
        # one replay before the first event, as of those that told how long a replay is
        assert len(host.ran) - before == 4 * 20
        assert first.busy_us == pytest.approx(4 * 100.0 + (timing.LOOKS + 1) * 10.0)
        second = timer.take(2, 0.0, briefly=True)
        assert second.busy_us == pytest.approx(3 * 100.0)
        assert second.us == pytest.approx((5.0, 5.0))
        # a replay that was captured: the rotation, and what is timed
        assert len(host.graphs) == 1
        assert host.log.count("graph of 20") == 7
        warm = timer.take(2, 50.0)
        assert warm.busy_us > second.busy_us + timing.BURST_US
    assert "destroy stream 1002" in host.log


def test_unknown_regimes_and_empty_rotations_are_refused(host):
    with pytest.raises(ConfigError, match="a regime is one of cold, warm, eager; got hot"):
        measure(host.device(), rotation(host, 1), "hot", QUICK)
    with pytest.raises(ConfigError, match="nothing to measure: no calls were given"):
        measure(host.device(), [], "cold", QUICK)


def test_warm_up_ends_when_time_and_clock_have_settled(host, monkeypatch):
    # an idle board: the clock rises, and calls get quicker with it
    rising = [345.0, 900.0, 1500.0, 1980.0, 1980.0, 1980.0, 1980.0]
    readings = iter(rising)
    seen = []

    def read(uuid, briefly):
        seen.append(next(readings))
        host.launch_us = 5.0 * 1980.0 / seen[-1]
        return Reading(clock_mhz=seen[-1], power_w=600.0, throttle=("power cap",))

    monkeypatch.setattr(timing, "read_clocks", read)
    samples = measure(host.device(), rotation(host, 2), "cold", Policy(warmup_ms=60_000.0))
    # the first burst at 1980 MHz differs from the one before; the last reading is the timing's
    assert seen == rising
    assert samples.us == pytest.approx((5.0,) * 15)
    assert samples.clock_mhz == (1980.0, 1980.0)
    assert samples.power_w == 600.0
    assert samples.throttle == ("power cap",)


def test_warm_up_ends_when_its_time_is_up(host, monkeypatch):
    readings = iter(range(100, 10**9, 100))

    def read(uuid, briefly):
        return Reading(clock_mhz=float(next(readings) % 1900))

    monkeypatch.setattr(timing, "read_clocks", read)
    measure(host.device(), rotation(host, 2), "warm", QUICK)
    # without an end to it this test would not come back
    assert next(readings) < 10**6


@pytest.mark.parametrize(
    ("min_us", "rotation_us", "rounds"), [(400, 100, 4), (400, 101, 4), (400, 99, 5), (400, 900, 1)]
)
def test_rounds_hold_the_work_asked_for(min_us, rotation_us, rounds):
    assert rounds_to_fill(min_us, rotation_us) == rounds
    assert rounds * rotation_us >= min_us


def test_a_time_of_0_asks_for_no_endless_graph():
    assert rounds_to_fill(400.0, 0.0) == 400_000


def test_policy_rotates_three_times_l2():
    assert Policy().rotate_bytes(KNOWN["h200"]) == 3 * 60 * 2**20


def test_host_time_is_that_of_one_launch(host):
    launched = []
    us = host_time_us(launched.append, 0, launches=1024)
    assert len(launched) == 1024
    assert 0 < us < 50


class Nvml:
    """NVML's C functions with Python bodies."""

    def __init__(self, known=b"GPU-1234"):
        self.known = known

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return 0 if uuid == self.known else 6

    def nvmlDeviceGetPowerUsage(self, handle, value):
        return _store(value, 612_345)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle, value):
        return _store(value, 0x1 | 0x4 | 0x40)

    def nvmlDeviceGetClockInfo(self, handle, kind, value):
        return _store(value, {1: 1755, 2: 3201}[kind])

    def nvmlDeviceGetTemperature(self, handle, sensor, value):
        # not supported on this board
        return 3


def _store(reference, number):
    reference._obj.value = number
    return 0


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setattr(clocks, "_library", Nvml)
    clocks._board.cache_clear()
    yield
    clocks._board.cache_clear()


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_clocks_are_read_in_our_units(nvml, uuid):
    assert read_clocks(uuid) == Reading(
        clock_mhz=1755.0, memory_mhz=3201.0, power_w=612.345, temperature_c=None,
        throttle=("power cap", "thermal, hardware"),
    )  # fmt: skip


def test_a_brief_look_is_at_the_clock_and_what_holds_it(nvml):
    assert read_clocks("1234", briefly=True) == Reading(
        clock_mhz=1755.0, throttle=("power cap", "thermal, hardware")
    )


def test_a_board_that_nvml_does_not_know_reads_as_nothing(nvml):
    assert read_clocks("99") == Reading()


def test_without_nvml_nothing_is_known(monkeypatch):
    def missing():
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(clocks, "_library", missing)
    clocks._board.cache_clear()
    assert read_clocks("1234") == Reading()
    clocks._board.cache_clear()


def test_an_idle_gpu_is_not_throttled():
    assert throttle_names(0x1) == ()
    assert throttle_names(0x8 | 0x20) == ("hardware slowdown", "thermal, software")
