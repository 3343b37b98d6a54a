"""Many threads and streams on shared weights on a real GPU, some of which capture graphs meanwhile.

Every result must have the bits of a call made alone: threads may share no scratch, no launch's
arguments and no plan while one of them changes it.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cuda.bindings import driver
from cuda_array import CudaArray
from quantised import layer, rows

from ferrum_numba.launch import Graph
from ferrum_numba.launch.device import call
from ferrum_numba.linear.dense import MarlinLinear

pytestmark = pytest.mark.gpu
THREADS, TURNS, CAPTURING = 8, 40, 3
# one launch, several blocks a tile; sums handed over; a prefill
ROWS = (1, 5, 16, 48, 200)
K, N = 2048, 768


class Work:
    """One thread's own activations, results and stream on a weight that all share."""

    def __init__(self, device, linear, number):
        self.device, self.linear = device, linear
        self.stream = device.new_stream()
        self.sources = [CudaArray.of(device, rows(M, K, seed=number)) for M in ROWS]
        self.outs = [self.new_out(M) for M in ROWS]

    def new_out(self, M):
        return CudaArray.of(self.device, np.full((M, N), np.nan, np.float16))

    def alone(self):
        """Return what calls made by nobody else give."""
        for source, out in zip(self.sources, self.outs, strict=True):
            self.linear.forward(source, out, self.stream)
        return self.read()

    def read(self):
        call(driver.cuStreamSynchronize, self.stream)
        return [out.read() for out in self.outs]

    def eager(self, start):
        """Call the layer again and again; return the results of every turn that differ."""
        self.device.make_current()
        start.wait()
        for turn in range(TURNS):
            which = range(len(ROWS)) if turn % 2 else reversed(range(len(ROWS)))
            for i in which:
                self.linear.forward(self.sources[i], self.outs[i], self.stream)
        return self.read()

    def captured(self, start):
        """Capture the same calls on a stream of their own, and replay them, again and again."""
        self.device.make_current()
        pairs = list(zip(self.sources, self.outs, strict=True))
        start.wait()
        for _ in range(TURNS // 8):
            calls = [lambda stream, pair=pair: self.linear.forward(*pair, stream) for pair in pairs]
            graph = Graph.capture(self.device, calls)
            for _ in range(4):
                graph.launch(self.stream)
            call(driver.cuStreamSynchronize, self.stream)
        return self.read()


@pytest.mark.parametrize("store", ["marlin", "raw"])
@pytest.mark.parametrize("first", ["known", "new"])
def test_threads_and_captures_on_one_weight_give_the_bits_of_calls_alone(device, store, first):
    """first: whether the plans of all numbers of rows are there, or made by whoever comes first."""
    tensors = layer(K, N, 128, zeros="gptq", bias=True)
    alone = MarlinLinear.from_gptq(tensors, store=store)
    shared = alone if first == "known" else MarlinLinear.from_gptq(tensors, store=store)
    works = [Work(device, alone, number) for number in range(THREADS)]
    want = [work.alone() for work in works]
    for work in works:
        work.linear, work.outs = shared, [work.new_out(M) for M in ROWS]
    start = threading.Barrier(THREADS)
    # a capture may make no plan: it goes by those that calls before it have made
    captures = CAPTURING if first == "known" else 0
    with ThreadPoolExecutor(THREADS) as threads:
        runs = [
            threads.submit(work.captured if number < captures else work.eager, start)
            for number, work in enumerate(works)
        ]
        got = [run.result(timeout=300) for run in runs]
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        for M, one, other in zip(ROWS, mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"thread {number}, M = {M}")


def test_calls_of_one_thread_go_on_while_another_captures_on_the_same_weight(device):
    """What is launched on other streams meanwhile is in no graph, and runs at once."""
    linear = MarlinLinear.from_gptq(layer(K, N, 128))
    work, other = Work(device, linear, 0), Work(device, linear, 1)
    want = (work.alone(), other.alone())
    work.outs, other.outs = ([one.new_out(M) for M in ROWS] for one in (work, other))

    def between(stream):
        for source, out in zip(other.sources, other.outs, strict=True):
            other.linear.forward(source, out, other.stream)
        for source, out in zip(work.sources, work.outs, strict=True):
            work.linear.forward(source, out, stream)

    graph = Graph.capture(device, [between])
    for mine, theirs in zip(other.read(), want[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert all(np.isnan(one).all() for one in work.read()), "a capture runs nothing"
    graph.launch(work.stream)
    for mine, theirs in zip(work.read(), want[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
