"""Binaries on a GPU: buffers, prepared launches, graphs; arrays and streams of other libraries."""

from ferrum_numba.launch.buffer import Buffer, page_locked
from ferrum_numba.launch.cublas import lacking
from ferrum_numba.launch.device import Device
from ferrum_numba.launch.graph import Graph
from ferrum_numba.launch.interop import exported, pointer, stream_handle
from ferrum_numba.launch.kernel import Loaded, Prepared, load
from ferrum_numba.launch.operands import Bound, HostOperands, OperandSet, Uploads
from ferrum_numba.launch.repeated import Fixed, Followed, InTurn, Order, Repeated
from ferrum_numba.launch.scratch import Needs, Scratch, capturing

__all__ = [
    "Bound",
    "Buffer",
    "Device",
    "Fixed",
    "Followed",
    "Graph",
    "HostOperands",
    "InTurn",
    "Loaded",
    "Needs",
    "OperandSet",
    "Order",
    "Prepared",
    "Repeated",
    "Scratch",
    "Uploads",
    "capturing",
    "exported",
    "lacking",
    "load",
    "page_locked",
    "pointer",
    "stream_handle",
]
