"""Quantised layers as torch modules, and Hugging Face models made of them.

torch must be there; `pip install 'ferrum-numba[torch]'` brings it. The modules keep their weights
in buffers and call one operator, so that they can be saved, moved, compiled, exported and captured.
"""

from ferrum_numba.torch.experts import ExpertStack, GatedExperts
from ferrum_numba.torch.layout import Layout
from ferrum_numba.torch.linear import MarlinLinear
from ferrum_numba.torch.replace import replace_linears

__all__ = ["ExpertStack", "GatedExperts", "Layout", "MarlinLinear", "replace_linears"]
