"""What was measured, as one HTML file, Markdown, JSON and figures. Data only: no CUDA."""

from ferrum_numba.report.data import Board, Sources, boards
from ferrum_numba.report.writer import write

__all__ = ["Board", "Sources", "boards", "write"]
