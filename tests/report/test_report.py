"""The report, from synthetic results: every number in it is one that went in."""

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure.clocks import throttle_names
from ferrum_numba.report import Sources, boards, write
from ferrum_numba.report.blocks import Table, significant, span
from ferrum_numba.report.data import ceilings_of
from ferrum_numba.report.document import document
from ferrum_numba.report.markdown import render as markdown
from ferrum_numba.report.verdict import POWER_CAP, verdict
from ferrum_numba.results import CheckRow, Planned, ResultFile, Row, best

H200 = replace(KNOWN["h200"], source="live", uuid="GPU-synthetic")
NASTY = 'relative error 0.5 <b onload="x"> & | more'
VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})


def synthetic_environment(**changes):
    environment = {
        "gpu": H200.name, "uuid": H200.uuid, "driver": "580.1", "versions": {"numpy": "2.4"},
        "commit": "0123abcd", "dirty": False, "date": "2026-11-22T10:00:00.000+00:00",
        "command": "ferrum-numba tune", "clocks": {"sm_mhz": 1980}, "policy": {"samples": 15},
        "gpu_facts": asdict(H200),
    }  # fmt: skip
    return environment | changes


def synthetic_row(kernel="decode", size=8, us=40.0, **changes):
    n, k = 28672, 8192
    flops, size_bytes = 2 * size * n * k, n * k // 2 + 2 * size * (n + k)
    bound_us = max(size_bytes / 4800e3, flops / 989.4e6)
    row = {
        "kernel": kernel, "op": "gemm", "config": {"tile_m": 16, "num_stages": 4},
        "problem": {"M": size, "N": n, "K": k, "group_size": 128}, "arch": "sm_90a",
        "regime": "cold", "us": us, "us_low": us * 0.99, "us_high": us * 1.01, "samples": [us],
        "flops": flops, "bytes": size_bytes, "gbps": size_bytes / us / 1e3,
        "tflops": flops / us / 1e6, "bound_us": bound_us, "fraction": bound_us / us,
        "rel_error": 2.1e-4, "max_error": 1e-3, "ok": True, "status": "measured", "reason": "",
        "registers": 168, "spill_bytes": 0, "smem_bytes": 66560, "blocks_per_sm": 2,
        "source_hash": "h", "seed": 0,
    }  # fmt: skip
    return Row.from_json(row | changes)


def no_time(kernel="decode", size=8, **changes):
    names = ("us", "us_low", "us_high", "gbps", "tflops", "fraction", "rel_error")
    row = replace(synthetic_row(kernel, size), samples=(), ok=False, **changes)
    return replace(row, **dict.fromkeys(names, math.nan))


ROWS = [
    synthetic_row("decode", 1, 33.21),
    synthetic_row("decode", 8, 35.13),
    synthetic_row("decode", 8, 35.91, config={"tile_m": 32, "num_stages": 2}),
    synthetic_row("wgmma", 8, 35.3),
    synthetic_row("wgmma", 1024, 700.5, tflops=686.7, registers=170),
    synthetic_row("slow", 8, 99.5),
    synthetic_row("wgmma", 1, 30.0, ok=False, status="wrong", reason=NASTY, rel_error=float("inf")),
    no_time("wgmma", 1, status="refused", reason="needs 230 KB, the GPU has 227 KB"),
    no_time("wgmma", 8, status="refused", reason="needs 240 KB, the GPU has 227 KB"),
    synthetic_row("decode", 8, 90.0, status="slow", config={"tile_m": 64, "num_stages": 2}),
]
PEERS = {
    "gpu": "NVIDIA H200", "date": "2026-11-21", "source": "synthetic table", "regime": "cold",
    "rows": [
        {"op": "gemm", "problem": {"M": 8, "N": 28672, "K": 8192}, "peer": who, "kind": kind,
         "us": us}
        for who, kind, us in [("humming", "4-bit", 40.8), ("machete", "4-bit", 45.0),
                              ("cuBLAS fp16", "fp16", 120.5)]
    ],
}  # fmt: skip


def ceiling(kernel, us, gbps, tflops):
    return synthetic_row(
        kernel, us=us, us_low=us * 0.99, us_high=us * 1.01, gbps=gbps, tflops=tflops, op="ceiling",
        problem={"size": 1}, config={},
    )  # fmt: skip


CEILINGS = ResultFile(
    synthetic_environment(command="ferrum-numba bench --ceilings"),
    [ceiling("dram_read", 100.0, 4400.0, 0.0), ceiling("wgmma", 50.0, 0.0, 880.0)],
)
PLAN = [
    Planned(
        "decode", "gemm", {"M": m, "N": 28672, "K": 8192}, {"tile_m": t}, "sm_90a",
        registers=100 + t, spill_bytes=t // 64 * 8, smem_bytes=65536, blocks_per_sm=2,
        flops=m * 469762048, bytes=117440512 + m, bound_us=24.5 + m,
        status="spills" if t // 64 else "ok", reason="8 B" * (t // 64),
    )
    for m in (1, 64) for t in (16, 32, 64)
]  # fmt: skip
CHECKS = [
    CheckRow(
        kernel, "gemm", {"M": m, "N": 64, "K": 128}, {"tile_m": 16},
        ok=(kernel, m) != ("wgmma", 17), reason=NASTY if m == 17 else "", how="interpreter",
        rel_error=m * 1e-5, max_error=1e-3, seconds=1.0,
    )
    for kernel in ("decode", "wgmma") for m in (1, 17)
]  # fmt: skip
FULL = Sources(
    [ResultFile(synthetic_environment(), ROWS)], [CEILINGS], PLAN, CHECKS, [PEERS], asdict(H200)
)
EMPTY = Sources(plan=PLAN, checks=CHECKS, gpu=asdict(KNOWN["h200"]))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the files of a report with everything in it, by name."""
    return contents(write(tmp_path_factory.mktemp("full"), FULL))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Return the files of a report where nothing was measured, by name."""
    return contents(write(tmp_path_factory.mktemp("empty"), EMPTY))


def contents(paths):
    return {p.name: p.read_bytes() if p.suffix == ".png" else p.read_text("utf-8") for p in paths}


def table(full_report, title):
    """Return a table of the JSON as a dict a row."""
    found = [t for t in json.loads(full_report["report.json"])["tables"] if t["title"] == title]
    assert len(found) == 1
    return [dict(zip(found[0]["columns"], row, strict=True)) for row in found[0]["rows"]]


class Page(HTMLParser):
    """Checks the balance of a page and collects what it might load."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.tags, self.loads, self.ids = [], [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.split(":")[-1] in ("href", "src", "srcset", "data", "action"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page(report):
    parser = Page()
    parser.feed(report["report.html"])
    return parser


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


def test_words_of_others_are_escaped(full):
    assert "&lt;b onload=&quot;x&quot;&gt; &amp; | more" in full["report.html"]
    assert NASTY not in full["report.html"]
    assert '&lt;b onload="x"> & \\| more' in full["report.md"]


def test_everything_is_written_and_named(full):
    assert set(full) == {
        "report.html", "report.md", "report.json", "roofline.svg", "roofline.png", "time.svg",
        "time.png", "fraction.svg", "fraction.png",
    }  # fmt: skip
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", full["report.md"])
    assert set(pictures) == {"roofline.svg", "time.svg", "fraction.svg"}
    for picture in pictures:
        assert full[picture] in full["report.html"]


def test_numbers_in_the_table_are_those_of_the_rows(full):
    rows = table(full, "K×N 8192×28672, gemm")
    best = rows[1]
    source = ROWS[1]
    assert best["M"] == "8"
    assert best["kernel"] == "decode"
    assert best["µs [low, high]"] == "35.13 [34.78, 35.48]"
    assert best["verdict"] == "best"
    assert best["config"] == "tile_m=16 num_stages=4"
    assert float(best["GB/s"]) == pytest.approx(source.gbps, rel=1e-3)
    assert float(best["TFLOP/s"]) == pytest.approx(source.tflops, rel=1e-3)
    assert float(best["bound µs"]) == pytest.approx(source.bound_us, rel=1e-3)
    assert float(best["fraction"]) == pytest.approx(source.fraction, rel=2e-3)
    assert [best[c] for c in ("rel error", "registers", "smem KB", "blocks/SM")] == [
        "2.1e-04", "168", "65.0", "2",
    ]  # fmt: skip


def test_winners_ties_and_the_slower_are_told(full):
    rows = table(full, "K×N 8192×28672, gemm")
    told = [(row["M"], row["kernel"], row["verdict"]) for row in rows]
    assert told == [
        ("1", "decode", "best"),
        ("8", "decode", "best"),
        ("8", "wgmma", "tie"),
        ("8", "slow", "2.83× slower"),
        ("1024", "wgmma", "best"),
    ]


def test_peers_stand_beside_with_their_ratio_and_date(full):
    rows = table(full, "K×N 8192×28672, gemm")
    assert rows[1]["best 4-bit peer µs"] == "40.80 humming"
    assert rows[1]["peer / ours"] == f"{40.8 / 35.13:.2f}×"
    assert rows[1]["fp16 peer µs"] == "120.5 cuBLAS fp16"
    assert rows[0]["best 4-bit peer µs"] == ""
    assert "peers' µs: 2026-11-21, synthetic table" in full["report.md"]


@pytest.mark.parametrize(
    "changes", [{"gpu": "NVIDIA A10"}, {"regime": "warm"}, {"rows": []}], ids=str
)
def test_peers_of_another_gpu_or_regime_are_left_out(changes):
    board = boards(replace(FULL, peers=[PEERS | changes]))[0]
    assert board.peers == ()


def test_peers_of_another_group_size_are_left_out():
    row = PEERS["rows"][0]
    other = row | {"problem": row["problem"] | {"group_size": 64}}
    assert boards(replace(FULL, peers=[PEERS | {"rows": [other]}]))[0].peers == ()


def test_losers_are_counted_with_their_reason(full):
    rows = table(full, "Refused, failed, wrong or untrusted: gemm")
    assert [(r["kernel"], r["status"], r["rows"]) for r in rows] == [
        ("wgmma", "refused", "2"), ("wgmma", "wrong", "1"),
    ]  # fmt: skip
    assert rows[0]["reason (of the first)"] == "needs 230 KB, the GPU has 227 KB"
    slow = {row["kernel"]: row for row in table(full, "Correct and slow: gemm")}
    assert slow["decode"]["timed in full"] == "3"
    assert slow["decode"]["dropped after a quick look"] == "1"
    assert slow["slow"]["more than 1.5× slower"] == "1"
    assert slow["slow"]["slowest"] == "2.83×"


def test_ceilings_stand_beside_the_datasheet(full):
    rows = {row["ceiling"]: row for row in table(full, "Ceilings of NVIDIA H200")}
    assert rows["DRAM read"]["measured [low, high]"].startswith("4400 [")
    assert rows["DRAM read"]["datasheet"] == "4800"
    assert rows["DRAM read"]["measured / datasheet"] == f"{4400 / 4800:.3f}"
    assert rows["wgmma"]["measured / datasheet"] == f"{880 / 989.4:.3f}"
    assert "ridge: 200 FLOP/B (wgmma 880 TFLOP/s / 4.40 TB/s, measured)" in full["report.md"]


def test_the_json_holds_what_is_drawn(full):
    board = json.loads(full["report.json"])["boards"][0]
    points = {(p["kernel"], p["size"]): p for p in board["points"]}
    assert points["decode", 8]["us"] == 35.13
    assert points["decode", 8]["doubt"] == ""
    # faster than every believed row of its kernel and problem: drawn hollow
    assert points["wgmma", 1]["doubt"] == NASTY
    assert {r["tensor"]: r["flop_per_byte"] for r in board["ridges"]}["wgmma"] == 200.0
    assert {c["source"] for c in board["ceilings"]} == {"measured", "datasheet"}


def test_the_verdict_is_made_of_the_rows():
    texts = verdict(boards(FULL)[0])
    assert texts[0].startswith("NVIDIA H200, gemm, cold: 3 problems, 3 with a correct, trusted")
    assert "datasheet ceilings of 4800 GB/s and 989.4 TFLOP/s" in texts[0]
    assert texts[1].startswith("Memory-bound (2 problems, M 1 to 8): fastest is decode on 2 of 2.")
    assert (
        "faster on 1 of 1, 1.16× in the median, least 1.16× (8192×28672, M=8, humming)" in texts[1]
    )
    assert texts[2].startswith("Tensor-bound (1 problem, M 1024): fastest is wgmma on 1")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (synthetic_row(us=26.0), "it is at the roof, only fewer bytes are faster"),
        (synthetic_row(us=30.0), "split the weights evenly over the SMs"),
        (synthetic_row(us=60.0), "more bytes in flight: more stages, wider loads or more blocks"),
        (synthetic_row(size=4096, us=2000.0), "it is at the roof, only fewer FLOPs are faster"),
        (synthetic_row(size=4096, us=3000.0), "the tensor cores wait"),
        (synthetic_row(us=60.0, spill_bytes=16), "1 winner of these spill registers to memory"),
        (synthetic_row(us=9.0, bytes=1e6, flops=1e6, gbps=111.0), "launch, ramp-up and tail weigh"),
    ],
    ids=["memory-roof", "memory-near", "memory-far", "tensor-roof", "tensor-far", "spills",
         "latency"],
)  # fmt: skip
def test_the_advice_follows_the_limit(row, wanted):
    file = ResultFile(synthetic_environment(), [row])
    assert wanted in " ".join(verdict(boards(Sources([file]))[0]))


def test_the_power_cap_is_told_with_the_clocks_it_left():
    assert throttle_names(0x4) == (POWER_CAP,)
    capped = {"throttle": ["power cap"], "clock_mhz": [1980.0, 1605.0]}
    rows = [
        synthetic_row(size=1024, us=700.0, **capped),
        synthetic_row(size=2048, us=1400.0, **capped | {"clock_mhz": [1965.0, 1545.0]}),
        synthetic_row(size=4096, us=2800.0, throttle=[], clock_mhz=[1980.0, 1980.0]),
    ]
    text = " ".join(verdict(boards(Sources([ResultFile(synthetic_environment(), rows)]))[0]))
    assert "2 winners of 3 ran into the power cap, ending at 1545 to 1605 MHz" in text
    rows = [synthetic_row(size=1024, us=700.0, throttle=["power cap"], clock_mhz=[None, None])]
    text = " ".join(verdict(boards(Sources([ResultFile(synthetic_environment(), rows)]))[0]))
    assert "1 winner of 1 ran into the power cap: there" in text


def test_a_kernel_at_the_rate_of_mma_sync_is_told_to_leave_it():
    files = [ResultFile(synthetic_environment(), [synthetic_row(size=4096, us=3000.0)])]
    rates = [ceiling("mma_sync", 10.0, 0.0, 660.0), ceiling("wgmma", 10.0, 0.0, 880.0)]
    rates.append(ceiling("dram_read", 10.0, 4400.0, 0.0))
    found = boards(Sources(files, [ResultFile(synthetic_environment(), rates)]))
    text = " ".join(verdict(found[0]))
    assert "641 TFLOP/s is what mma.sync gives on this GPU (660); only wgmma (880)" in text


def test_an_empty_report_says_so_and_calls_the_plan_modelled(empty):
    assert set(empty) == {
        "report.html", "report.md", "report.json", "roofline.svg", "roofline.png",
    }  # fmt: skip
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
    assert [p["modelled"] for p in json.loads(empty["report.json"])["modelled"]] == [True, True]


def test_checks_are_a_table_of_problems_and_kernels(empty):
    rows = table(empty, "Checks against the reference")
    assert rows == [
        {"problem": "M=1", "decode (interpreter)": "pass 1/1, 1.0e-05",
         "wgmma (interpreter)": "pass 1/1, 1.0e-05"},
        {"problem": "M=17", "decode (interpreter)": "pass 1/1, 1.7e-04",
         "wgmma (interpreter)": "FAIL 1 of 1"},
    ]  # fmt: skip
    assert table(empty, "Failed checks")[0]["reason"] == NASTY


def test_provenance_names_every_run():
    earlier = synthetic_environment(date="2026-11-01T00:00:00.000+00:00", commit="older")
    rows = [synthetic_row(), synthetic_row("old", run=earlier["date"])]
    file = ResultFile(synthetic_environment(), rows, [earlier])
    found = [b for b in document(Sources([file]), []) if isinstance(b, Table)]
    runs = [dict(t.rows) for t in found if t.title.startswith("Results: gemm")]
    assert [(run["commit"], run["rows"]) for run in runs] == [("0123abcd", "1"), ("older", "1")]
    assert runs[0]["versions.numpy"] == "2.4"
    assert runs[0]["clocks.sm_mhz"] == "1980"


def test_the_board_of_the_newest_results_comes_first():
    dates = ("2026-11-25T10:00:00.000+00:00", "2026-11-28T10:00:00.000+00:00")
    environments = [synthetic_environment(uuid=u, date=d) for u, d in zip("ab", dates, strict=True)]
    files = [ResultFile(e, [synthetic_row()]) for e in environments]
    for order in (files, files[::-1]):
        assert [board.uuid for board in boards(Sources(order))] == ["b", "a"]


def test_every_table_has_a_regime_and_units(full):
    for found in json.loads(full["report.json"])["tables"]:
        assert found["regime"]
        assert found["units"]


def test_regimes_and_gpus_are_never_mixed(tmp_path):
    rows = [synthetic_row(), synthetic_row(regime="warm", us=20.0)]
    other = synthetic_environment(gpu="NVIDIA A10", gpu_facts=asdict(KNOWN["a10"]))
    files = [ResultFile(synthetic_environment(), rows), ResultFile(other, [synthetic_row()])]
    found = boards(Sources(files))
    assert [(b.gpu, b.regime, len(b.rows)) for b in found] == [
        ("NVIDIA A10", "cold", 1), ("NVIDIA H200", "cold", 1), ("NVIDIA H200", "warm", 1),
    ]  # fmt: skip
    # 4000 GB/s is too fast for an A10, and no wonder for a warm L2
    assert [len(board.winners) for board in found] == [0, 1, 1]
    names = {path.name for path in write(tmp_path, Sources(files))}
    assert {"roofline.svg", "roofline-2-gemm-cold.svg", "roofline-3-gemm-warm.svg"} <= names
    parser = page(contents([tmp_path / "report.html"]))
    assert len(parser.ids) == len(set(parser.ids))


def test_a_row_marked_untrusted_never_wins():
    rows = [synthetic_row(us=30.0, untrusted="1 other process"), synthetic_row("other", us=35.0)]
    board = boards(Sources([ResultFile(synthetic_environment(), rows)]))[0]
    assert [winner.row.kernel for winner in board.winners.values()] == ["other"]
    assert "1 row marked untrusted when measured." in verdict(board)[0]


def test_the_size_keeps_its_name():
    row = synthetic_row(problem={"tokens": 16, "experts": 128})
    board = boards(Sources([ResultFile(synthetic_environment(), [row])]))[0]
    assert "1 problem, tokens 16" in verdict(board)[1]
    tables = [block for block in document(Sources(), [board]) if isinstance(block, Table)]
    assert tables[0].columns[0] == "tokens"


def test_a_problem_without_a_result_is_not_hidden(tmp_path):
    file = ResultFile(synthetic_environment(), [no_time(status="refused", reason="too large")])
    report = contents(write(tmp_path, Sources([file])))
    row = table(report, "K×N 8192×28672, gemm")[0]
    assert (row["kernel"], row["verdict"]) == ("none", "no trusted result of 1 rows")
    assert "1 problem, 0 with a correct, trusted time" in report["report.md"]


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


def test_the_best_is_the_one_the_store_would_name():
    board = boards(FULL)[0]
    named = {(row.kernel, row.problem["M"]): row.us for row in best(ROWS)}
    assert {(r.kernel, r.problem["M"]): r.us for r in board.best.values()} == named


def test_a_tie_is_what_the_rounds_cannot_tell_from_the_winner():
    def in_final(kernel, us, count=32, spread=0.0):
        rounds = [[us * (1 + spread * (-1) ** (i // 2))] for i in range(count)]
        samples = [one for (one,) in rounds]
        return synthetic_row(kernel, us=us, samples=samples, rounds=rounds, contest="a")

    rows = [
        in_final("winner", 100.0), in_final("same", 100.5), in_final("slower", 103.0),
        in_final("undecided", 103.0, spread=0.2),
    ]  # fmt: skip
    (board,) = boards(Sources([ResultFile(synthetic_environment(), rows)]))
    told = {row.kernel: board.standing(row) for row in rows}
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
     (None, ""), (float("inf"), "")],
    ids=str,
)  # fmt: skip
def test_numbers_are_printed_to_four_digits(value, wanted):
    assert significant(value) == wanted


def test_a_span_of_one_value_is_that_value():
    assert span([2.0, 2.0]) == "2"
    assert span([1.5, 2.25], 2) == "1.5 to 2.2"
    assert span([]) == ""
