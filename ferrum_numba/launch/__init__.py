"""Binaries on a GPU: buffers, prepared launches, graphs; arrays and streams of other libraries."""

from ferrum_numba.launch.buffer import Buffer
from ferrum_numba.launch.cublas import lacking
from ferrum_numba.launch.device import Device
from ferrum_numba.launch.graph import Graph
from ferrum_numba.launch.interop import pointer, stream_handle
from ferrum_numba.launch.kernel import Fixed, Followed, Loaded, Prepared, Repeated, load
from ferrum_numba.launch.operands import Bound, OperandSet
from ferrum_numba.launch.scratch import Scratch, capturing

__all__ = [
    "Bound",
    "Buffer",
    "Device",
    "Fixed",
    "Followed",
    "Graph",
    "Loaded",
    "OperandSet",
    "Prepared",
    "Repeated",
    "Scratch",
    "capturing",
    "lacking",
    "load",
    "pointer",
    "stream_handle",
]
