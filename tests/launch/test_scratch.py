"""Scratch: one set of grow-only buffers a stream, zero at first, never moved during a capture."""

import host_driver
import pytest

from ferrum_numba.errors import CaptureError, LaunchError
from ferrum_numba.launch import Scratch, capturing


@pytest.fixture
def host(monkeypatch):
    return host_driver.install(monkeypatch)


@pytest.fixture
def scratch(host):
    return Scratch(host.device())


def zero(address, count):
    return not host_driver.view(address, count, "u1").any()


def test_the_address_stays_while_the_capacity_suffices(host, scratch):
    first = scratch.addresses(5, {"partials": 1000, "counters": 16})
    assert (zero(first["partials"], 1000), zero(first["counters"], 16)) == (True, True)
    kept = dict(first)
    assert scratch.addresses(5, {"partials": 1}) == kept
    assert scratch.addresses(5, {"counters": 16, "partials": 1000}) == kept
    assert host.allocated == [1000, 16]


def test_nothing_is_asked_of_the_driver_once_there_is_room(host, scratch):
    scratch.addresses(5, {"partials": 1000})
    host.calls.clear()
    scratch.addresses(5, {"partials": 1000})
    assert host.calls == ["cuStreamIsCapturing", "cuStreamGetId"]


def test_what_grows_at_least_doubles_and_leaves_the_old_where_it_was(host, scratch):
    old = scratch.addresses(5, {"partials": 1000, "counters": 16})["partials"]
    host_driver.view(old, 4, "u1")[:] = 7
    new = scratch.addresses(5, {"partials": 1001})
    assert host.allocated == [1000, 16, 2000]
    assert new["partials"] != old
    assert zero(new["partials"], 2000)
    # a graph that was captured before may still write here
    assert old in host.memory
    assert scratch.addresses(5, {"partials": 9000})["counters"] == new["counters"]
    assert host.allocated[3:] == [9000]
    assert scratch.size_bytes == 1000 + 16 + 2000 + 9000


def test_streams_share_nothing(scratch):
    assert scratch.addresses(5, {"partials": 64}) != scratch.addresses(6, {"partials": 64})


def test_a_handle_that_comes_back_is_another_stream(host, scratch):
    first = dict(scratch.addresses(5, {"partials": 64}))
    host.stream_ids[5] = 500
    assert scratch.addresses(5, {"partials": 64}) != first


def test_a_capture_cannot_grow(host, scratch):
    scratch.addresses(5, {"partials": 64})
    host.cuStreamBeginCapture(5, 0)
    assert capturing(5)
    allocated = list(host.allocated)
    message = "96 bytes of scratch cannot be allocated while a graph is captured"
    with pytest.raises(CaptureError, match=message):
        scratch.addresses(5, {"partials": 80, "counters": 16})
    assert host.allocated == allocated
    host.cuStreamEndCapture(5)
    assert not capturing(5)
    assert scratch.addresses(5, {"partials": 80})


def test_a_capture_gets_what_was_reserved(host, scratch):
    scratch.reserve({"partials": 64, "counters": 16})
    scratch.reserve({"partials": 32})
    host.cuStreamBeginCapture(9, 0)
    taken = dict(scratch.addresses(9, {"partials": 64, "counters": 16}))
    assert scratch.addresses(9, {"partials": 64}) == taken
    # two graphs may run at once, so nothing is reserved for a second one by now
    host.cuStreamBeginCapture(10, 0)
    with pytest.raises(CaptureError):
        scratch.addresses(10, {"partials": 64})
    host.cuStreamEndCapture(10)
    host.cuStreamEndCapture(9)
    # nor for a second one under the same handle, which may be another stream's by now
    host.cuStreamBeginCapture(9, 0)
    with pytest.raises(CaptureError):
        scratch.addresses(9, {"partials": 64})
    host.cuStreamEndCapture(9)
    scratch.reserve({"partials": 64})
    host.cuStreamBeginCapture(10, 0)
    assert scratch.addresses(10, {"partials": 64}) != taken


def test_captures_on_a_stream_that_was_prepared_share_its_set(host, scratch):
    scratch.reserve({"partials": 64}, 5)
    found = []
    for _ in range(2):
        host.cuStreamBeginCapture(5, 0)
        host.calls.clear()
        found.append(dict(scratch.addresses(5, {"partials": 64})))
        assert "cuMemAlloc" not in host.calls
        host.cuStreamEndCapture(5)
    assert found[0] == found[1] == scratch.addresses(5, {"partials": 64})


def test_a_capture_prefers_what_was_reserved_for_it(host, scratch):
    own = dict(scratch.addresses(5, {"partials": 64}))
    scratch.reserve({"partials": 64})
    host.cuStreamBeginCapture(5, 0)
    assert scratch.addresses(5, {"partials": 64}) != own


def test_the_id_of_a_stream_is_not_asked_for_in_a_capture(host, scratch):
    """The driver refuses it and ends the capture."""
    scratch.reserve({"partials": 64})
    host.cuStreamBeginCapture(5, 0)
    host.calls.clear()
    scratch.addresses(5, {"partials": 64})
    assert "cuStreamGetId" not in host.calls


def test_a_refusal_of_the_driver_names_the_call(host, scratch):
    host.fail["cuStreamGetId"] = host_driver.driver.CUresult.CUDA_ERROR_INVALID_HANDLE
    with pytest.raises(LaunchError, match="cuStreamGetId failed with CUDA_ERROR_INVALID_HANDLE"):
        scratch.addresses(5, {"partials": 64})
