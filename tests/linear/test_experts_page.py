"""The page on layers of experts: its example computes what it says, and what it names is there."""

import re

import numpy as np
import page_runs
import pages

import ferrum_numba
from ferrum_numba.kernels import GROUPED, MOE
from ferrum_numba.reference.gptq import dequantize

PAGE = pages.ROOT / "docs" / "experts.md"


def test_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = page_runs.run(pages.fenced(PAGE, "python"), tmp_path)[""]
    checkpoint, x = found["checkpoint"], found["x"].astype(np.float64)
    want = np.zeros(found["z"].shape)
    for e in (0, 3):
        layers = [
            checkpoint.linear(f"{found['experts'].format(e=e)}.{name}") for name in found["shapes"]
        ]
        gate, up, down = (dequantize(one.qweight, one.scales, one.qzeros) for one in layers)
        g, u = x @ gate, x @ up
        want += (g / (1 + np.exp(-g)) * u) @ down / 2
    assert found["y"].shape == want.shape
    # three roundings to fp16
    np.testing.assert_allclose(found["z"], want, rtol=0, atol=2**-9 * np.abs(want).max())


def test_what_the_page_names_is_there():
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    public = {"add_bias", "gemm_phase_batched", "marlin_gemm_moe", "moe_combine"}
    assert public <= named & set(ferrum_numba.__all__)
    assert {kernel.name for kernel in (*MOE, *GROUPED)} <= named
