"""Results in a notebook."""

from ferrum_numba.results import ResultFile, Row
from ferrum_numba.results.display import table


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
