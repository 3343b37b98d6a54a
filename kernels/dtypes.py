"""The 16-bit types of activations, scales and results, by the name that problems use."""

import ml_dtypes
import numpy as np

# type of a problem -> its name in PTX
HALVES = {"fp16": "f16", "bf16": "bf16"}
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
