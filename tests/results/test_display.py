"""Results in a notebook."""

import math
import re
from dataclasses import replace

import pytest

from ferrum_numba.compare.live import Trial
from ferrum_numba.results import (
    Candidates,
    CheckRow,
    Checks,
    Decision,
    Planned,
    ResultFile,
    Row,
    Verdict,
)
from ferrum_numba.results.display import Usual
from ferrum_numba.results.pairs import Compared, Pair
from ferrum_numba.shown import LEFT


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
    assert str(file) == repr(file)
    assert re.search(r"M=8 +a +note=<b> +cold +10 \[10, 10\] +1 +2 +50 +0", str(file))


def test_what_all_rows_have_alike_is_said_once():
    found = [
        replace(row("a", 10.0), problem={"M": m, "N": 64}, config={"tile": m, "note": "<i>"})
        for m in (1, 2)
    ]
    html = ResultFile({"gpu": "x", "date": ""}, found)._repr_html_()
    assert "<td>M=1</td><td>a</td><td>tile=1</td>" in html
    assert "<ul><li>all problems: N=64</li><li>all of a: note=&lt;i&gt;</li></ul>" in html


def test_a_row_is_shown_by_what_is_known_of_it():
    html = row("a<", 10.0, registers=64)._repr_html_()
    assert html.startswith("<table><caption>a&lt;, gemm</caption>")
    assert '<th scope="row">µs [low, high]</th>' + LEFT + "10 [10, 10]</td>" in html
    assert '<th scope="row">registers</th>' + LEFT + "64</td>" in html
    assert '<th scope="row">status</th>' + LEFT + "measured</td>" in html
    # nobody compared it
    assert "relative error" not in html
    refused = Row("a", "gemm", {}, {}, status="refused", reason="needs <b>")._repr_html_()
    assert "refused: needs &lt;b&gt;</td>" in refused
    assert "µs" not in refused


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict("FASTER", 0.9, 0.88, 0.92), "FASTER 0.9 [0.88, 0.92]"),
        (Verdict("UNDECIDED", 1.0, 0.0, math.inf), "UNDECIDED 1 [0, ∞]"),
        (Verdict("SLOWER", math.inf, math.inf, math.inf), "SLOWER ? [, ∞]"),
    ],
)
def test_a_verdict_is_shown_with_its_interval(verdict, words):
    assert str(verdict) == words
    assert verdict._repr_html_() == f"<ul><li>{words}</li></ul>"


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


def test_decisions_are_shown_in_a_line_each():
    one = Decision("gemm", {"M": 8}, "a<", {"tile": 4}, 9.5, "final")
    cells = "<td>M=8</td><td>a&lt;</td><td>tile=4</td><td>9.5</td><td>1</td>"
    assert cells in one._repr_html_()


def planned(**changes):
    known = {
        "kernel": "a", "op": "gemm", "problem": {"M": 8, "N": 1}, "config": {"tile": 4, "deep": 2},
        "arch": "sm_90a", "registers": 64, "spill_bytes": 0, "smem_bytes": 0, "blocks_per_sm": 2,
        "flops": 1.0, "bytes": 1.0, "bound_us": 2.5, "status": "ok", "reason": "", "fp64": 0,
        "sass": {"HMMA": 2, "MOV": 3}, "remarks": ("<spills>",),
    }  # fmt: skip
    return Planned(**{**known, **changes})


USUAL = Usual({("a", "M=8 N=1"): {"tile": 4, "deep": 1}}, {"a": {"N": 1}})


def test_a_plan_is_shown_by_kernel_and_problem_and_what_is_unusual():
    rows = [
        planned(),
        planned(config={"tile": 4, "deep": 1}, status="spills", reason="8 bytes"),
        planned(registers=None, status="does not fit", reason="M < 9"),
    ]
    found = Candidates(rows, USUAL)
    html = found._repr_html_()
    assert "<caption>a on M=8: at least 2.5 µs, modelled</caption>" in html
    assert "<td>deep=2</td><td>64</td>" in html
    assert "<td>default</td>" in html
    assert "<td>5, 2 HMMA</td>" in html
    assert "<td>spills: 8 bytes</td>" in html
    for sentence in ("a: &lt;spills&gt;", "1 of a do not fit: M &lt; 9", "1 of 2 compiled"):
        assert f"<li>{sentence}" in html
    assert re.search(r"deep=2 +64 +0 +0 +0 +2 +5, 2 HMMA", repr(found))
    assert found == rows
    assert "<caption>a for sm_90a</caption>" in rows[0]._repr_html_()


def test_checks_are_shown_by_kernel_and_what_is_wrong():
    good = CheckRow("a", "gemm", {"M": 8, "N": 1}, {"tile": 4, "deep": 1}, True, "", "interpreter",
                    rel_error=1e-4, num_sms=132)  # fmt: skip
    bad = replace(good, ok=False, reason="got <nan>", config={"tile": 1, "deep": 1})
    found = Checks([good, bad], USUAL)
    html = found._repr_html_()
    assert "<td>M=8</td><td>default</td><td>132</td><td>interpreter</td><td>ok</td>" in html
    assert "<li>a M=8: got &lt;nan&gt;</li><li>1 of 2 checks passed</li>" in html
    assert "a M=8: got <nan>\n1 of 2 checks passed" in str(found)
    assert "<td>tile=4 deep=1</td>" in good._repr_html_()
