"""Scratch: one set of grow-only buffers a stream, zero at first, and one for each capture."""

import host_driver
import numpy as np
import pytest

from ferrum_numba.errors import CaptureError, LaunchError
from ferrum_numba.launch import Needs, Scratch, capturing

REFUSED = host_driver.driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
BOTH = Needs({"partials": 1000, "counters": 16})
SMALL = Needs({"partials": 64})


@pytest.fixture
def host(monkeypatch):
    return host_driver.install(monkeypatch)


@pytest.fixture
def scratch(host):
    return Scratch(host.device())


def zero(address, count):
    return not host_driver.view(address, count, "u1").any()


def numbers(packed):
    return tuple(np.frombuffer(packed, "<u8").tolist())


def captured(host, scratch, stream, *all_needs):
    """Return the addresses that a capture gets."""
    host.cuStreamBeginCapture(stream, 0)
    try:
        return [numbers(scratch.addresses(stream, needs)) for needs in all_needs]
    finally:
        host.cuStreamEndCapture(stream)


@pytest.mark.parametrize("stream", [0, 5])
def test_the_address_stays_while_the_capacity_suffices(host, scratch, stream):
    partials, counters = numbers(scratch.addresses(stream, BOTH))
    assert (zero(partials, 1000), zero(counters, 16)) == (True, True)
    assert numbers(scratch.addresses(stream, Needs({"partials": 1}))) == (partials,)
    assert numbers(scratch.addresses(stream, Needs({"counters": 16, "partials": 1000}))) == (
        counters, partials,
    )  # fmt: skip
    assert host.allocated == [1000, 16]


@pytest.mark.parametrize("stream", [0, 5])
def test_parts_lie_in_their_buffers_wherever_these_are(host, scratch, stream):
    parts = {"ids": ("routing", 0), "weights": ("routing", 40)}
    found = numbers(scratch.addresses(stream, Needs({"rows": 16, "routing": 80}, parts)))
    _rows, routing, ids, weights = found
    assert (ids, weights) == (routing, routing + 40)
    # a larger one is elsewhere, and its parts with it
    more = Needs({"routing": 800}, {"weights": ("routing", 400)})
    larger, weights = numbers(scratch.addresses(stream, more))
    assert larger != routing
    assert weights == larger + 400


def test_nothing_is_asked_of_the_driver_once_there_is_room(host, scratch):
    for stream, asked in ((5, ["cuStreamIsCapturing", "cuStreamGetId"]), (0, [])):
        numbers(scratch.addresses(stream, BOTH))
        host.calls.clear()
        numbers(scratch.addresses(stream, BOTH))
        assert host.calls == asked


def test_what_grows_at_least_doubles_and_leaves_the_old_where_it_was(host, scratch):
    old, counters = numbers(scratch.addresses(5, BOTH))
    host_driver.view(old, 4, "u1")[:] = 7
    (new,) = numbers(scratch.addresses(5, Needs({"partials": 1001})))
    assert host.allocated == [1000, 16, 2000]
    assert new != old
    assert zero(new, 2000)
    # a graph that was captured before may still write here
    assert old in host.memory
    assert numbers(scratch.addresses(5, BOTH)) == (new, counters)
    numbers(scratch.addresses(5, Needs({"partials": 9000})))
    assert host.allocated[3:] == [9000]
    assert scratch.size_bytes == 1000 + 16 + 2000 + 9000


def test_streams_share_nothing(scratch):
    places = [numbers(scratch.addresses(stream, SMALL)) for stream in (0, 5, 6)]
    assert len(set(places)) == 3


def test_a_handle_that_comes_back_is_another_stream(host, scratch):
    first = numbers(scratch.addresses(5, SMALL))
    host.stream_ids[5] = 500
    assert numbers(scratch.addresses(5, SMALL)) != first


def test_a_capture_has_what_nobody_else_has(host, scratch):
    eager = numbers(scratch.addresses(5, SMALL))
    host.cuStreamBeginCapture(5, 0)
    assert capturing(5)
    first = numbers(scratch.addresses(5, SMALL))
    assert zero(*first, 64)
    assert numbers(scratch.addresses(5, SMALL)) == first
    (larger,) = numbers(scratch.addresses(5, Needs({"partials": 80})))
    assert zero(larger, 80)
    host.cuStreamEndCapture(5)
    assert not capturing(5)
    # nor is it another's later on: the graph may run at any time
    ((second,),) = captured(host, scratch, 5, SMALL)
    assert numbers(scratch.addresses(5, SMALL)) == eager
    assert len({*eager, *first, larger, second}) == 4


def test_a_capture_is_told_what_to_expect_of_an_allocation(host, scratch):
    """Outside of the mode for this, the driver refuses and the capture is lost."""
    before = host.capture_mode
    captured(host, scratch, 5, SMALL)
    assert host.allocated == [64]
    assert host.capture_mode == before
    host.fail["cuMemAlloc"] = REFUSED
    message = "1016 bytes of scratch cannot be allocated while a graph is captured: cuMemAlloc fai"
    with pytest.raises(CaptureError, match=message):
        captured(host, scratch, 6, BOTH)
    assert host.capture_mode == before


def test_a_capture_gets_what_was_reserved(host, scratch):
    scratch.reserve(BOTH)
    scratch.reserve(SMALL)
    allocated = list(host.allocated)
    ((first, _), again) = captured(host, scratch, 9, BOTH, SMALL)
    assert again == (first,)
    assert host.allocated == allocated
    # two graphs may run at once, so what was reserved is the first one's
    ((second,),) = captured(host, scratch, 9, SMALL)
    assert second != first


def test_captures_on_a_stream_that_was_prepared_share_its_set(host, scratch):
    scratch.reserve(SMALL, 5)
    allocated = list(host.allocated)
    found = [captured(host, scratch, 5, SMALL) for _ in range(2)]
    assert host.allocated == allocated
    assert found == [[numbers(scratch.addresses(5, SMALL))]] * 2


def test_a_capture_prefers_what_was_reserved_for_it(host, scratch):
    scratch.reserve(SMALL, 5)
    scratch.reserve(SMALL)
    assert captured(host, scratch, 5, SMALL) != [numbers(scratch.addresses(5, SMALL))]


def test_the_id_of_a_stream_is_not_asked_for_in_a_capture(host, scratch):
    """The driver refuses it and ends the capture."""
    host.calls.clear()
    captured(host, scratch, 5, SMALL)
    assert "cuStreamGetId" not in host.calls


def test_a_refusal_of_the_driver_names_the_call(host, scratch):
    host.fail["cuStreamGetId"] = host_driver.driver.CUresult.CUDA_ERROR_INVALID_HANDLE
    with pytest.raises(LaunchError, match="cuStreamGetId failed with CUDA_ERROR_INVALID_HANDLE"):
        numbers(scratch.addresses(5, SMALL))
