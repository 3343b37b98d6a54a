"""What was tuned, for engines in any language: cubins, and files that say how to launch them."""

from ferrum_numba.export.folder import load
from ferrum_numba.export.layer import BIAS_MODES
from ferrum_numba.export.make import Options, export

__all__ = ["BIAS_MODES", "Options", "export", "load"]
