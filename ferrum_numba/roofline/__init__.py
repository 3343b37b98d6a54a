"""The roofline: its arithmetic and its figures. Data only: no CUDA, no kernels."""

from ferrum_numba.roofline.model import Ceiling, Peer, Point
from ferrum_numba.roofline.plot import plot

__all__ = ["Ceiling", "Peer", "Point", "plot"]
