"""The report, from synthetic results: every number in it is one that went in."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
from synthetic import (
    CEILINGS,
    CHECKS,
    EMPTY,
    FULL,
    H200,
    NASTY,
    PEERS,
    PLAN,
    ROWS,
    blocks,
    ceiling,
    contents,
    no_time,
    page,
    synthetic_environment,
    synthetic_row,
    table,
)

from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure.clocks import throttle_names
from ferrum_numba.report import Document, Sources, document, groups, write
from ferrum_numba.report.advice import POWER_CAP, because
from ferrum_numba.report.blocks import Table, significant, span
from ferrum_numba.report.data import ceilings_of
from ferrum_numba.report.html import render as page_of
from ferrum_numba.report.markdown import render as markdown
from ferrum_numba.report.verdict import findings, in_detail, next_steps, verdict
from ferrum_numba.results import ResultFile, best

TITLE = "gemm, NVIDIA H200, cold"
FASTEST = f"Fastest of each problem: {TITLE}"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the files of a report with everything in it, by name."""
    return contents(write(tmp_path_factory.mktemp("full"), FULL))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Return the files of a report where nothing was measured, by name."""
    return contents(write(tmp_path_factory.mktemp("empty"), EMPTY))


def group_of(*rows, ceilings=(CEILINGS,), **changes):
    (found,) = groups(Sources([ResultFile(synthetic_environment(**changes), [*rows])], ceilings))
    return found


def said(paragraphs):
    return " ".join(f"{one.lead} {one.text}" for one in paragraphs)


@pytest.mark.parametrize("which", ["full", "empty"])
def test_the_page_is_balanced_and_loads_nothing(which, request):
    parser = page(request.getfixturevalue(which))
    assert parser.open == []
    assert parser.wrong == []
    assert all(load.startswith("#") for load in parser.loads)
    assert {load[1:] for load in parser.loads} <= set(parser.ids)
    assert not parser.tags & {"script", "link", "iframe", "img", "object", "b"}
    assert len(parser.ids) == len(set(parser.ids))
    html = request.getfixturevalue(which)["report.html"]
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


@pytest.mark.parametrize("which", ["full", "empty"])
def test_the_verdict_is_first_the_provenance_last_and_no_heading_is_there_twice(which, request):
    report = request.getfixturevalue(which)
    found = [b["text"] for b in blocks(report, "heading") if b["level"] == 2]
    titles = [b["text"] for b in blocks(report, "heading")]
    titles += [b["title"] for kind in ("table", "picture") for b in blocks(report, kind)]
    assert found[0] == "Verdict"
    assert len(titles) == len(set(titles))
    if which == "full":
        assert found == [
            "Verdict", "What to do next", "gemm", "Ceilings", "Plan (modelled)", "Checks",
            "Provenance",
        ]  # fmt: skip


def test_words_of_others_are_escaped(full):
    assert "&lt;b onload=&quot;x&quot;&gt; &amp; | more" in full["report.html"]
    assert NASTY not in full["report.html"]
    assert '&lt;b onload="x"> & \\| more' in full["report.md"]


def test_a_number_stays_with_what_it_is_of(full):
    html = full["report.html"]
    for words in ("90\u00a0% or more", "0\u00a0of\u00a02 problems", "[34.78,\u00a035.48]"):
        assert words in html
    assert "2026-\u206011-\u206022" in html
    assert not {"\u00a0", "\u2060"} & set(full["report.md"])


def test_an_op_says_what_its_shapes_are_called(full):
    assert (
        "**Shapes:** K×N of the weights, then the fields that differ; M rows a call."
        in (full["report.md"])
    )


def test_on_a_phone_each_cell_says_its_column():
    table = Table("a", "cold", "us", ('x "1" <b>', "config", "us"), (("a", "b=1", "3"),))
    html = page_of("t", [table], {})
    (name,) = re.findall(r'<table id="(\w+)">', html)
    rules = dict(re.findall(rf"#{name} td:nth-child\((\d)\)::before{{(.*)}}", html))
    assert rules == {
        "1": r'content:"x \22 1\22  \3c b>: "', "2": 'content:"config: "', "3": 'content:"us: "',
    }  # fmt: skip
    # numbers at the right, words may wrap
    assert f"#{name} td:nth-child(3){{text-align" in html
    assert f"#{name} td:nth-child(2){{overflow-wrap" in html


def test_everything_is_written_and_named(full):
    names = [f"gemm-{kind}" for kind in ("roofline", "time", "fraction", "waterfall")]
    ends = ("svg", "png", "csv", "json")
    assert set(full) == {
        "report.html", "report.md", "report.json", *(f"{n}.{e}" for n in names for e in ends),
    }  # fmt: skip
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", full["report.md"])
    assert pictures == [f"{name}.svg" for name in names]
    for picture in pictures:
        assert full[picture] in full["report.html"]


def test_markdown_and_page_have_the_same_content(full):
    for block in (*blocks(full, "paragraph"), *blocks(full, "heading")):
        words = re.sub(r"[^\w ]", "", block["text"])
        for name in ("report.md", "report.html"):
            plain = (
                full[name]
                .replace("\u00a0", " ")
                .replace("&lt;", "")
                .replace("&gt;", "")
                .replace("&quot;", "")
            )
            assert words in re.sub(r"[^\w ]", "", plain.replace("&amp;", "").replace("&#x27;", ""))
    for one in blocks(full, "table"):
        for name in ("report.md", "report.html"):
            assert one["title"] in full[name]


def test_numbers_in_the_table_are_those_of_the_rows(full):
    found = table(full, FASTEST)
    best_of_8, source = found[1], ROWS[1]
    assert best_of_8["M"] == "8"
    assert best_of_8["design"] == "decode"
    assert best_of_8["µs [low, high]"] == "35.13 [34.78, 35.48]"
    assert float(best_of_8["GB/s"]) == pytest.approx(source.gbps, rel=1e-3)
    assert float(best_of_8["TFLOP/s"]) == pytest.approx(source.tflops, rel=5e-3)
    # of the ceiling that was measured, not of the datasheet's
    bound_us = source.bytes / 4400e3
    assert float(best_of_8["bound µs"]) == pytest.approx(bound_us, rel=1e-3)
    assert best_of_8["of the bound"] == f"{100 * bound_us / 35.13:.0f} %"
    assert (best_of_8["bound by"], best_of_8["run"]) == ("memory", "1")
    config = table(full, f"Configs of the fastest: {TITLE}")[1]
    assert config["config"] == "tile_m=16 num_stages=4"
    assert [config[c] for c in ("rel error", "registers", "smem KB", "blocks/SM")] == [
        "2.1e-04", "168", "65.0", "2",
    ]  # fmt: skip


def test_winners_ties_and_the_slower_are_told(full):
    found = table(full, f"Every design: {TITLE}")
    assert [(r["M"], r["decode"], r["slow"], r["wgmma"]) for r in found] == [
        ("1", "33.21 *", "", ""), ("8", "35.13 *", "99.50", "35.30 ="), ("1024", "", "", "700.5 *"),
    ]  # fmt: skip


def test_peers_stand_beside_with_their_ratio_and_date(full):
    found = table(full, FASTEST)
    assert found[1]["4-bit peer µs"] == "40.80 humming"
    assert found[1]["4-bit / ours"] == f"{40.8 / 35.13:.2f}×"
    # of one peer alone the column has the name
    assert found[1]["cuBLAS fp16 µs"] == "120.5"
    assert found[0]["4-bit peer µs"] == ""
    assert "peers: 2026-11-21, synthetic table" in full["report.md"]


@pytest.mark.parametrize(
    "changes", [{"gpu": "NVIDIA A10"}, {"regime": "warm"}, {"rows": []}], ids=str
)
def test_peers_of_another_gpu_or_regime_are_left_out(changes):
    assert groups(replace(FULL, peers=[PEERS | changes]))[0].peers == ()


def test_peers_of_another_group_size_are_left_out():
    row = PEERS["rows"][0]
    other = row | {"problem": row["problem"] | {"group_size": 64}}
    assert groups(replace(FULL, peers=[PEERS | {"rows": [other]}]))[0].peers == ()


def test_losers_are_counted_with_their_reason(full):
    found = table(full, f"Refused, failed, wrong or untrusted: {TITLE}")
    assert [(r["design"], r["status"], r["rows"]) for r in found] == [
        ("wgmma", "refused", "2"), ("wgmma", "wrong", "1"),
    ]  # fmt: skip
    assert found[0]["reason (of the first)"] == "needs 230 KB, the GPU has 227 KB"
    slow = {row["design"]: row for row in table(full, f"Correct and slow: {TITLE}")}
    assert slow["decode"]["timed in full"] == "3"
    assert slow["decode"]["dropped after a quick look"] == "1"
    assert slow["slow"]["more than 1.5× slower"] == "1"
    assert slow["slow"]["slowest"] == "2.83×"


def test_ceilings_stand_beside_the_datasheet(full):
    found = {row["ceiling"]: row for row in table(full, "Ceilings of NVIDIA H200")}
    assert found["DRAM read"]["measured [low, high]"].startswith("4400 [")
    assert found["DRAM read"]["datasheet"] == "4800"
    assert found["DRAM read"]["measured / datasheet"] == f"{4400 / 4800:.3f}"
    assert found["wgmma"]["measured / datasheet"] == f"{880 / 989.4:.3f}"
    assert "ridge: 200 FLOP/B (wgmma 880 TFLOP/s / 4.40 TB/s, measured)" in full["report.md"]


def test_the_verdict_says_what_was_reached_the_worst_and_because():
    memory, tensor = verdict(groups(FULL)[0])
    assert memory.lead == "gemm, cold, where memory binds, M 1 to 8:"
    reached = [100 * row.bytes / 4400e3 / row.us for row in ROWS[:2]]
    assert memory.text == (
        f"{sum(reached) / 2:.0f} % of the bound in the median, 90 % or more on 0 of 2 problems; "
        f"worst {reached[1]:.0f} % at 8192×28672, M=8 (decode), because 8.30 of its 35.1 µs are "
        "in no term of the model."
    )
    assert tensor.lead == "gemm, cold, where tensor cores bind, M 1024:"
    detail = said(in_detail(groups(FULL)[0]))
    assert "faster on 1 of 1, 1.16× in the median, least 1.16× (8192×28672, M=8, humming)" in detail
    assert "fastest design: decode on 2" in detail


def test_the_bound_says_which_ceilings_it_is_of(full):
    assert "DRAM read 4.40 TB/s, wgmma 880 TFLOP/s" in full["report.md"]
    assert "ceilings measured on board A, 2026-11-22 10:00 (run 1)" in full["report.md"]
    text = " ".join(b["text"] for b in blocks(full, "paragraph"))
    assert "datasheet figures" not in text


def test_without_ceilings_the_bound_is_the_datasheet_s():
    found = document(replace(FULL, ceilings=[]))
    text = said(b for b in found.blocks if hasattr(b, "lead"))
    assert "DRAM 4.80 TB/s, tensor cores 989.4 TFLOP/s" in text
    assert "datasheet figures, no ceilings of this GPU were measured" in text


def test_a_row_s_bound_is_of_its_own_board():
    other = synthetic_environment(uuid="GPU-other", date="2026-11-23T10:00:00.000+00:00")
    slower = ResultFile(
        other, [ceiling("dram_read", 100.0, 4000.0, 0.0), ceiling("wgmma", 50.0, 0.0, 800.0)]
    )
    files = [
        ResultFile(synthetic_environment(), [synthetic_row("a", 1)]),
        ResultFile(other, [synthetic_row("a", 8)]),
    ]
    (group,) = groups(Sources(files, [CEILINGS, slower]))
    rates = [group.bound(row).longest.ceiling.rate for row in group.rows]
    assert rates == [4400.0, 4000.0]
    # drawn are those of the board that was measured last
    assert max(c.rate for c in group.ceilings if c.name == "DRAM read") == 4000.0


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (synthetic_row(us=28.0), "it is at the roof, only fewer bytes are faster"),
        (synthetic_row(us=32.0), "split the weights evenly over the SMs"),
        (synthetic_row(us=60.0), "ore bytes in flight: more stages, wider loads or more blocks"),
        (synthetic_row(size=4096, us=2300.0), "it is at the roof, only fewer FLOPs are faster"),
        (synthetic_row(size=4096, us=3000.0), "he tensor cores wait"),
        (synthetic_row(us=60.0, spill_bytes=16), "1 winner spill registers to memory"),
        (synthetic_row(us=9.0, bytes=1e6, flops=1e6, gbps=111.0), "aunch, ramp-up and tail weigh"),
    ],
    ids=["memory-roof", "memory-near", "memory-far", "tensor-roof", "tensor-far", "spills",
         "latency"],
)  # fmt: skip
def test_the_advice_follows_the_limit(row, wanted):
    assert wanted in said(next_steps(findings(group_of(row))))


def test_what_has_the_most_room_is_to_be_done_first():
    rows = [synthetic_row(us=28.0), synthetic_row(size=4096, us=5000.0)]
    first, second = next_steps(findings(group_of(*rows)))
    assert first.lead.startswith("1. gemm, cold, tensor cores (1 problem, on average 56 %")
    assert second.lead.startswith("2. gemm, cold, memory (1 problem, on average 4 %")


def test_the_power_cap_is_told_with_the_clock_it_left():
    assert throttle_names(0x4) == (POWER_CAP,)
    capped = {"throttle": [POWER_CAP], "clock_mhz": [1980.0, 1605.0]}
    group = group_of(synthetic_row(size=4096, us=3000.0, **capped))
    assert "ran into the power cap at 1605 MHz" in said(next_steps(findings(group)))


def test_low_clocks_are_a_reason():
    rates = [ceiling("wgmma", 50.0, 0.0, 880.0), ceiling("dram_read", 100.0, 4400.0, 0.0)]
    rates = [replace(row, more={"clock_mhz": [1980.0, 1800.0]}) for row in rates]
    capped = {"throttle": [POWER_CAP], "clock_mhz": [1800.0, 1500.0]}
    row = synthetic_row(size=4096, us=2900.0, **capped)
    group = group_of(row, ceilings=[ResultFile(synthetic_environment(), rates)])
    assert (
        "437 of its 2900 µs are lost to low clocks (the power cap held the SM clock 1500 of 1800"
        in because(group, group.rows[0])
    )
    assert "At the clocks that the board held, 90 % of the bound" in said(in_detail(group))


def test_a_kernel_at_the_rate_of_mma_sync_is_told_to_leave_it():
    rates = [ceiling("mma_sync", 10.0, 0.0, 660.0), ceiling("wgmma", 10.0, 0.0, 880.0)]
    rates.append(ceiling("dram_read", 10.0, 4400.0, 0.0))
    group = group_of(
        synthetic_row(size=4096, us=3000.0), ceilings=[ResultFile(synthetic_environment(), rates)]
    )
    text = said(next_steps(findings(group)))
    assert "641 TFLOP/s is what mma.sync gives on this GPU (660); only wgmma (880)" in text


def test_that_nobody_else_was_measured_there_is_a_reason():
    group = group_of(synthetic_row("old", 8, 90.0), synthetic_row("new", 16, 30.0))
    assert "no other design was measured there" in because(group, group.rows[0])


def test_an_empty_report_says_so_and_calls_the_plan_modelled(empty):
    assert {"report.html", "report.md", "report.json", "roofline.svg", "roofline.csv"} <= set(empty)
    assert "**Nothing was measured:** no figure in this report is the time" in empty["report.md"]
    headings = re.findall(r"^#+ (.*)$", empty["report.md"], re.MULTILINE)
    assert [h for h in headings if "lan" in h and "modelled" not in h] == []
    row = table(empty, "Plan for NVIDIA H200 (modelled)")[0]
    assert all("modelled" in name for name in list(row)[3:])
    assert row["candidates (modelled)"] == "6"
    assert row["status (modelled)"] == "4 ok, 2 spills"
    assert row["registers (modelled)"] == "116 to 164"
    assert row["spill bytes (modelled)"] == "8"
    assert row["bound µs (modelled)"] == "25.50 to 88.50"
    drawn = json.loads(empty["roofline.json"])["data"]["points"]
    assert [p["modelled"] for p in drawn] == [True, True]


def test_checks_are_a_line_a_kernel_and_each_of_them_folded(empty):
    shared = {"how": "interpreter"}
    assert table(empty, "Checks against the reference") == [
        {"kernel": "decode", **shared, "passed": "2 of 2", "relative error": "1.7e-04",
         "problem": "M=17 N=64 K=128"},
        {"kernel": "wgmma", **shared, "passed": "1 of 2", "relative error": "1.0e-05",
         "problem": "M=1 N=64 K=128"},
    ]  # fmt: skip
    each = table(empty, "Each check")
    assert [(row["kernel"], row["problem"][:4], row["outcome"]) for row in each] == [
        ("decode", "M=1 ", "pass"), ("decode", "M=17", "pass"), ("wgmma", "M=1 ", "pass"),
        ("wgmma", "M=17", "FAIL"),
    ]  # fmt: skip
    assert table(empty, "Failed checks")[0]["reason"] == NASTY


def test_provenance_is_a_line_a_run():
    earlier = synthetic_environment(
        date="2026-11-01T00:00:00.000+00:00", commit="older", uuid="GPU-older", driver="570.1"
    )
    rows = [synthetic_row(), synthetic_row("old", run=earlier["date"])]
    found = document(Sources([ResultFile(synthetic_environment(), rows, [earlier])])).blocks
    runs, software = [b for b in found if isinstance(b, Table)][-2:]
    listed = [dict(zip(runs.columns, row, strict=True)) for row in runs.rows]
    assert [(run["run"], run["board"], run["commit"], run["rows"]) for run in listed] == [
        ("1", "A", "older", "1"), ("2", "B", "0123abc", "1"),
    ]  # fmt: skip
    assert ("versions.numpy", "2.4") in software.rows


def test_results_of_several_boards_are_one_section():
    dates = ("2026-11-25T10:00:00.000+00:00", "2026-11-28T10:00:00.000+00:00")
    environments = [synthetic_environment(uuid=u, date=d) for u, d in zip("ab", dates, strict=True)]
    files = [ResultFile(e, [synthetic_row(size=8 * (i + 1))]) for i, e in enumerate(environments)]
    for order in (files, files[::-1]):
        found = document(Sources(order))
        (fastest,) = [b for b in found.blocks if getattr(b, "title", "") == FASTEST]
        assert [(row[1], row[-1]) for row in fastest.rows] == [("8", "1"), ("16", "2")]
        assert fastest.of == (
            "run 1: board A, 2026-11-25 10:00, commit 0123abc; "
            "run 2: board B, 2026-11-28 10:00, commit 0123abc"
        )


def test_of_many_runs_the_ends_are_named():
    environments = [
        synthetic_environment(uuid=str(i), date=f"2026-11-2{i}T10:00:00.000+00:00")
        for i in range(6)
    ]
    files = [ResultFile(e, [synthetic_row(size=8 + i)]) for i, e in enumerate(environments)]
    (group,) = groups(Sources(files))
    assert group.of(group.rows) == (
        "6 runs, 1-6, on boards A, B, C, D, E, F: 2026-11-20, commit 0123abc, to 2026-11-25, "
        "commit 0123abc (see Provenance)"
    )


def test_every_table_and_picture_says_what_it_is_of(full):
    for found in blocks(full, "table"):
        assert found["regime"]
        assert found["units"]
    measured = [b for b in blocks(full, "table") if TITLE in b["title"]]
    for found in (*measured, *blocks(full, "picture")):
        assert found["of"].startswith("run 1: board A, 2026-11-22 10:00, commit 0123abc")


def test_regimes_and_gpus_are_never_mixed(tmp_path):
    rows = [synthetic_row(), synthetic_row(regime="warm", us=20.0)]
    other = synthetic_environment(
        gpu="NVIDIA A10", gpu_facts=asdict(KNOWN["a10"]), date="2026-11-23T10:00:00.000+00:00"
    )
    files = [ResultFile(synthetic_environment(), rows), ResultFile(other, [synthetic_row()])]
    found = groups(Sources(files))
    assert [(g.gpu, g.regime, len(g.rows)) for g in found] == [
        ("NVIDIA A10", "cold", 1), ("NVIDIA H200", "cold", 1), ("NVIDIA H200", "warm", 1),
    ]  # fmt: skip
    # 4000 GB/s is too fast for an A10, and no wonder for a warm L2
    assert [len(group.winners) for group in found] == [0, 1, 1]
    report = contents(write(tmp_path, Sources(files)))
    assert {"gemm-nvidia-h200-cold-roofline.svg", "gemm-nvidia-h200-warm-roofline.svg"} <= set(
        report
    )
    parser = page(report)
    assert len(parser.ids) == len(set(parser.ids))
    assert [b["text"] for b in blocks(report, "heading")].count("gemm") == 1


def test_a_row_marked_untrusted_never_wins():
    rows = [synthetic_row(us=30.0, untrusted="1 other process"), synthetic_row("other", us=35.0)]
    group = group_of(*rows)
    assert [winner.row.kernel for winner in group.winners.values()] == ["other"]
    assert "1 row marked untrusted when measured." in said(verdict(group))


def test_the_size_keeps_its_name():
    group = group_of(synthetic_row(problem={"tokens": 16, "experts": 128}))
    assert "tokens 16" in said(verdict(group))


def test_a_problem_without_a_result_is_not_hidden(tmp_path):
    file = ResultFile(synthetic_environment(), [no_time(status="refused", reason="too large")])
    report = contents(write(tmp_path, Sources([file])))
    assert table(report, FASTEST)[0]["design"] == "no trusted result of 1 row"
    assert "1 of 1 problem without a correct, trusted time" in report["report.md"]


@pytest.mark.parametrize(
    "sources",
    [
        Sources(),
        Sources(plan=PLAN),
        Sources(checks=CHECKS),
        Sources(ceilings=[CEILINGS]),
        Sources(peers=[PEERS]),
        Sources([ResultFile(synthetic_environment(), [])]),
        Sources([ResultFile(synthetic_environment(gpu_facts={}), ROWS)]),
        Sources([ResultFile(synthetic_environment(), [synthetic_row(problem={"layers": 3})])]),
    ],
    ids=["nothing", "plan", "checks", "ceilings", "peers", "no-rows", "no-facts", "no-sizes"],
)
def test_missing_parts_are_left_out(sources, tmp_path):
    report = contents(write(tmp_path, sources))
    parser = page(report)
    assert parser.open == []
    assert parser.wrong == []
    json.loads(report["report.json"])


def test_two_reports_of_the_same_data_are_equal(full, tmp_path):
    assert contents(write(tmp_path, FULL)) == full


def test_the_report_can_be_written_again_from_its_json(full, tmp_path):
    from ferrum_numba.report import Writer

    (tmp_path / "old.json").write_text(full["report.json"])
    again = Writer(tmp_path / "again").write(Document.load(tmp_path / "old.json"))
    assert contents(again) == full


def test_the_best_is_the_one_the_store_would_name():
    group = groups(FULL)[0]
    named = {(row.kernel, row.problem["M"]): row.us for row in best(ROWS)}
    assert {(r.kernel, r.problem["M"]): r.us for r in group.best.values()} == named


def test_a_tie_is_what_the_rounds_cannot_tell_from_the_winner():
    def in_final(kernel, us, count=32, spread=0.0):
        rounds = [[us * (1 + spread * (-1) ** (i // 2))] for i in range(count)]
        samples = [one for (one,) in rounds]
        return synthetic_row(kernel, us=us, samples=samples, rounds=rounds, contest="a")

    group = group_of(
        in_final("winner", 100.0), in_final("same", 100.5), in_final("slower", 103.0),
        in_final("undecided", 103.0, spread=0.2),
    )  # fmt: skip
    told = {row.kernel: group.standing(row) for row in group.rows}
    assert told == {"winner": "best", "same": "tie", "undecided": "tie", "slower": "slower"}


def test_recorded_ceilings_count_as_measured_only_where_they_differ():
    recorded = asdict(replace(H200, source="recorded", dram_gbps=4400.0))
    found = [(c.kind, c.source, c.rate) for c in ceilings_of(recorded)]
    assert found == [
        ("memory", "datasheet", 4800.0), ("tensor", "datasheet", 989.4),
        ("memory", "measured", 4400.0),
    ]  # fmt: skip


def test_markdown_tables_are_aligned_in_the_source(full):
    for block in full["report.md"].split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1


def test_a_markdown_cell_is_one_line_and_means_itself():
    block = Table("t", "cold", "µs", ("a", "b"), (("x\ny | *z*", "1.5"),))
    assert markdown("report", [block]).endswith(
        "| a            |   b |\n| ------------ | --: |\n| x y \\| \\*z\\* | 1.5 |\n"
    )


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(35.1234, "35.12"), (2868.31, "2868"), (0.54, "0.5400"), (12345.6, "12346"), (0.0, "0"),
     (None, ""), (math.inf, "")],
    ids=str,
)  # fmt: skip
def test_numbers_are_printed_to_four_digits(value, wanted):
    assert significant(value) == wanted


def test_a_span_of_one_value_is_that_value():
    assert span([2.0, 2.0]) == "2"
    assert span([1.5, 2.25], 2) == "1.5 to 2.2"
    assert span([]) == ""


def test_a_notebook_shows_the_report():
    html = document(FULL)._repr_html_()
    assert html.startswith('<div class="ferrum-report">')
    assert "<script" not in html
    assert html.count("<svg ") == 4


def landscape(*rows):
    found = document(Sources([ResultFile(synthetic_environment(), [*rows])], [CEILINGS])).blocks
    drawn = [block for block in found if getattr(block, "kind", "") == "landscape"]
    return drawn, [b.text for b in found if getattr(b, "lead", "") == "Tuning landscape:"]


def tuned(kernel, *sizes, tiles):
    return [
        synthetic_row(kernel, size, 30.0 + tile, config={"tile_m": tile, "num_stages": 2})
        for size in sizes
        for tile in tiles
    ]


def test_there_is_no_landscape_of_one_config_a_problem():
    alone, some = (16,), (16, 32, 64, 128)
    lone = tuned("alone", *range(1, 13), tiles=alone)
    drawn, said = landscape(*lone)
    assert (drawn, said) == ([], ["left out for alone: one config a problem is stored."])
    (picture,), said = landscape(*lone, *tuned("searched", 1, 2, tiles=some))
    assert {value["kernel"] for value in picture.data["values"]} == {"searched"}
    assert said == ["left out for alone: one config a problem is stored."]
    _, said = landscape(*tuned("few", 1, tiles=some))
    assert said == ["left out for few: only 4 rows of problems with several configs."]
    assert landscape(*tuned("searched", 1, 2, tiles=some))[1] == []
