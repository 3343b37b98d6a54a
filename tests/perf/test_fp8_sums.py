"""What sums of fp8 are right to: the page's table is what the program prints, and 128 is enough."""

import re
from pathlib import Path

import numpy as np

from ferrum_numba.perf import fp8_sums

PAGE = Path(__file__).parents[2] / "docs" / "designs" / "w4a8_wgmma.md"


def test_the_page_has_the_table():
    # draws differ in no digit between versions of NumPy, sums of float64 in the last ones
    shown = re.search(r"^k added in fp8.*?(?=^```)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert shown.strip() == fp8_sums.table()


def test_chains_of_128_are_right_to_less_than_a_rounding_to_fp16():
    rng = np.random.default_rng(1)
    for make in (fp8_sums.gaussian, fp8_sums.outliers, fp8_sums.positive):
        ((relative, largest),) = fp8_sums.errors(*make(rng), lengths=(128,))
        assert relative < 2e-4
        assert largest < 2.0**-11


def test_long_chains_are_not():
    ((relative, _),) = fp8_sums.errors(*fp8_sums.positive(np.random.default_rng(1)), (4096,))
    assert relative > 0.05
