"""One small export that many tests read: a weight with every helper, and one as GPTQ has it."""

import json

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba.export import Options, export
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.w4a16 import W4A16Problem

PROBLEMS = (
    W4A16Problem(1, 256, 1024, act_order=True, bias=True),
    W4A16Problem(4, 256, 1024, act_order=True, bias=True),
    W4A16Problem(2, 72, 120, 24, "gptq", dtype="bf16"),
)
TYPES = {
    "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32),
    "I32": np.dtype(np.int32), "U16": np.dtype(np.uint16),
}  # fmt: skip


def tensors_of(data):
    """Return the tensors of a safetensors file's bytes; NumPy's own loader has no bfloat16."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__")
    return {
        name: np.frombuffer(body[slice(*one["data_offsets"])], TYPES[one["dtype"]])
        .reshape(one["shape"])
        .copy()
        for name, one in header.items()
    }


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return the folder of the export."""
    folder = tmp_path_factory.mktemp("export") / "out"
    export(PROBLEMS, KNOWN["h200"], folder, Options(bias_mode="two_step", vectors=True))
    return folder
