"""The 16-bit types of activations, scales and results, by the name that problems use."""

import ml_dtypes
import numpy as np

from ferrum_numba.errors import ConfigError, FerrumError

# type of a problem -> its name in PTX
HALVES = {"fp16": "f16", "bf16": "bf16"}
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def refuse_dtype(dtype: str, error: type[FerrumError] = ConfigError) -> None:
    """Raise an error where a type is neither of them."""
    if dtype not in DTYPES:
        raise error(f'dtype must be "fp16" or "bf16"; got "{dtype}"')
