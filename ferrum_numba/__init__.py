"""Write, prove, tune and ship int4 GEMM kernels in Python."""

import time
from importlib import import_module
from typing import Any

# before any other file of the package was read: what was edited since is not what runs
BEGAN = time.time()

# the one place: pyproject.toml reads it here
__version__ = "0.2.0"

# public name -> the module it lives in; imported when it is first asked for
_HOME = {
    "Kernel": "contract",
    "Launch": "contract",
    "Op": "contract",
    "Parameter": "contract",
    "Program": "contract",
    "Tolerance": "contract",
    "Work": "contract",
    "pointers": "contract",
    "sizes": "contract",
    "CaptureError": "errors",
    "CheckpointError": "errors",
    "FerrumError": "errors",
    "ConfigError": "errors",
    "ProblemError": "errors",
    "Gpu": "gpu",
    "GptqCheckpoint": "gptq.checkpoint",
    "GptqConfig": "gptq.config",
    "GptqTensors": "gptq.tensors",
    "ExpertStack": "linear.experts",
    "MarlinLinear": "linear.dense",
    "MarlinStackedExpertLinear": "linear.experts",
    "MarlinStore": "linear.stores",
    "MoeLayer": "linear.moe",
    "RawGptqStore": "linear.stores",
    "Trace": "tracing.trace",
    "trace": "tracing.trace",
    "add_bias": "linear.steps",
    "gemm_phase_batched": "linear.batched",
    "marlin_gemm_moe": "linear.batched",
    "marlin_gemm_with_offset": "linear.offset",
    "marlin_gemm_with_offset_strided": "linear.offset",
    "marlin_gemm_with_perm": "linear.offset",
    "moe_combine": "linear.steps",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module now."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
