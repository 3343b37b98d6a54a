"""The report of the recorded results: one page that can be sent on."""

import re

from synthetic import blocks, contents

from ferrum_numba.report import Document

MOST_BYTES = 700_000


def test_the_page_is_small_enough_to_be_sent_on(recorded):
    assert (recorded / "report.html").stat().st_size <= MOST_BYTES


def test_every_op_has_one_section_and_no_heading_is_there_twice(recorded):
    report = contents(recorded.iterdir())
    found = [b["text"] for b in blocks(report, "heading")]
    assert found[:2] == ["Verdict", "What to do next"]
    assert {"grouped_gemm", "w4a16_gemm"} <= set(found)
    assert found[-2:] == ["Ceilings", "Provenance"]
    titles = re.findall(r"^#+ (.*)$", report["report.md"], re.MULTILINE)
    assert len(titles) == len(set(titles))


def test_the_bound_is_of_measured_ceilings(recorded):
    text = (recorded / "report.md").read_text()
    assert "DRAM read 4.48 TB/s, wgmma 849.6 TFLOP/s" in text
    assert "datasheet figures" not in text


def test_the_verdict_says_how_far_and_why(recorded):
    found = Document.load(recorded / "report.json").verdict
    said = [block.text for block in found.blocks if hasattr(block, "lead")]
    assert any(re.match(r"\d+ % of the bound in the median, .*; worst .* because", t) for t in said)
    assert found.pictures == []
    assert len(found._repr_html_()) < 20_000
