"""The roofline: its arithmetic and its figures. Data only: no CUDA, no kernels."""

from ferrum_numba.roofline.ceilings import Ceiling
from ferrum_numba.roofline.plot import Svg, plot
from ferrum_numba.roofline.points import Peer, Point

__all__ = ["Ceiling", "Peer", "Point", "Svg", "plot"]
