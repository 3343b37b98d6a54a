"""One small export that many tests read: a weight with every helper, and one as GPTQ has it."""

import pytest

from ferrum_numba.export import Options, export
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.w4a16 import W4A16Problem

PROBLEMS = (
    W4A16Problem(1, 256, 1024, act_order=True, bias=True),
    W4A16Problem(4, 256, 1024, act_order=True, bias=True),
    W4A16Problem(2, 72, 120, 24, "gptq"),
)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return the folder of the export."""
    folder = tmp_path_factory.mktemp("export") / "out"
    export(PROBLEMS, KNOWN["h200"], folder, Options(bias_mode="two_step", vectors=True))
    return folder
