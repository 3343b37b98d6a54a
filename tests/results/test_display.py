"""Results in a notebook."""

import math

import pytest

from ferrum_numba.compare.live import Trial
from ferrum_numba.results import ResultFile, Row, Verdict
from ferrum_numba.results.display import table
from ferrum_numba.results.pairs import Compared, Pair


def row(kernel, us, **changes):
    return Row(
        kernel, "gemm", {"M": 8}, {"note": "<b>"}, us=us, us_low=us, us_high=us, samples=(us,) * 9,
        gbps=1.0, tflops=2.0, fraction=0.5, ok=True, **changes,
    )  # fmt: skip


def test_a_result_file_is_shown_as_its_winners():
    file = ResultFile(
        {"gpu": "NVIDIA H200", "date": "2026-12-01"}, [row("a", 10.0), row("b", 20.0)]
    )
    html = file._repr_html_()
    assert "<caption>NVIDIA H200, 2026-12-01: 2 rows</caption>" in html
    assert "<td>a</td><td>note=&lt;b&gt;</td><td>cold</td><td>10 [10, 10]</td>" in html
    assert "<td>b</td>" not in html
    assert html.count("<tr>") == 2


def test_cells_are_text():
    assert table("<t>", ["a&b"], [["<script>"]]) == (
        "<table><caption>&lt;t&gt;</caption><thead><tr><th>a&amp;b</th></tr></thead>"
        "<tbody><tr><td>&lt;script&gt;</td></tr></tbody></table>"
    )


def test_a_row_is_shown_by_what_is_known_of_it():
    html = row("a<", 10.0, registers=64)._repr_html_()
    assert html.startswith("<table><caption>a&lt;, gemm</caption>")
    assert "<td>µs [low, high]</td><td>10 [10, 10]</td>" in html
    assert "<td>registers</td><td>64</td>" in html
    assert "<td>status</td><td>measured</td>" in html
    # nobody compared it
    assert "relative error" not in html
    refused = Row("a", "gemm", {}, {}, status="refused", reason="needs <b>")._repr_html_()
    assert "<td>refused: needs &lt;b&gt;</td>" in refused
    assert "µs" not in refused


@pytest.mark.parametrize(
    ("verdict", "html"),
    [
        (Verdict("FASTER", 0.9, 0.88, 0.92), "<strong>FASTER</strong> 0.9 [0.88, 0.92]"),
        (Verdict("UNDECIDED", 1.0, 0.0, math.inf), "<strong>UNDECIDED</strong> 1 [0, ∞]"),
        (Verdict("SLOWER", math.inf, math.inf, math.inf), "<strong>SLOWER</strong> ? [, ∞]"),
    ],
)
def test_a_verdict_is_shown_with_its_interval(verdict, html):
    assert verdict._repr_html_() == html


def test_a_comparison_is_shown_as_its_pairs_and_how_many_of_each():
    gone = Verdict("SLOWER", math.inf, math.inf, math.inf)
    pairs = [
        Pair("gemm", {"M": 8}, "cold", row("a", 10.0), row("b", 9.0),
             Verdict("FASTER", 0.9, 0.88, 0.92)),
        Pair("gemm", {"M": 9}, "cold", row("a", 10.0), None, gone, "no row that counts: 1 wrong"),
    ]  # fmt: skip
    html = Compared(pairs, 0, 0)._repr_html_()
    assert "<caption>1 FASTER, 1 SLOWER, of the new against the old</caption>" in html
    assert "<td>a</td><td>b</td><td>10 [10, 10]</td><td>9 [9, 9]</td><td>0.9 [0.88, 0.92]" in html
    assert "no row that counts: 1 wrong" in html
    one = pairs[0]._repr_html_()
    assert one.count("<tr>") == 2
    assert Trial(pairs[0], (None, None))._repr_html_() == one
