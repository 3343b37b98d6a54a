"""The command line: kernels are handed in, it knows none by itself."""

from ferrum_numba.cli.app import main

__all__ = ["main"]
