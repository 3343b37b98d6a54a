"""The report of layers of experts: named by what they are, peers measured in turn beside them."""

import json
import re
from dataclasses import asdict, replace

import pytest
from synthetic import H200, contents, synthetic_environment, table

from ferrum_numba.kernels.grouped import OP
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.report import Sources, groups, write
from ferrum_numba.report.verdict import in_detail, verdict
from ferrum_numba.results import ResultFile, Row
from ferrum_numba.tune import bound_us

QWEN3 = [*PROBLEM_SETS["qwen3-moe"], *PROBLEM_SETS["qwen3-moe-skewed"]]
GATE_UP, DOWN = "E128 k8 2048→1536 {}", "E128 k8 768→2048 {} per_pair"


def row(problem, kernel="grouped_decode", times=1.25, peer="", kind=""):
    """Return a row of so many times the bound."""
    work = OP.work(problem)
    bound = bound_us(work, H200)
    us = times * bound + 2
    more = {"peer": peer, "kind": kind} if peer else {}
    return Row(
        kernel, OP.name, asdict(problem), {"tile_m": 8}, "sm_90a", "cold", us, us * 0.99, us * 1.01,
        (us,), work.bytes / us / 1e3, work.flops / us / 1e6, work.flops, work.bytes, bound,
        bound / us, ok=True, stage="final", run=synthetic_environment()["date"], more=more,
    )  # fmt: skip


def rows_of(problem):
    return [
        row(problem),
        row(problem, "grouped_wgmma", 1.5 if problem.tokens < 256 else 1.15),
        row(problem, "humming", 1.75, "humming 0.1.20", "4-bit"),
        row(problem, "cublas_an_expert", 20.0, "cuBLAS an expert", "fp16"),
    ]


ROWS = [one for problem in QWEN3 for one in rows_of(problem)]
SOURCES = Sources([ResultFile(synthetic_environment(), ROWS)], peers=PEERS)


@pytest.fixture(scope="module")
def group():
    (found,) = groups(SOURCES)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return contents(write(tmp_path_factory.mktemp("experts"), SOURCES))


def test_a_layer_is_named_by_its_experts(group):
    routings = ("uniform", "skewed")
    wanted = {layer.format(routing) for layer in (GATE_UP, DOWN) for routing in routings}
    assert {p.shape for p in group.points} == wanted
    assert group.size_name == "tokens"
    assert {p.size for p in group.points} == {1, 4, 16, 64, 256, 1024, 4096}


def test_rows_of_peers_are_none_of_ours(group):
    assert {row.kernel for row in group.rows} == {"grouped_decode", "grouped_wgmma"}
    assert {p.kernel for p in group.points} == {"grouped_decode", "grouped_wgmma"}
    measured = [p for p in group.peers if p.date == "2026-11-22" and p.name == "humming 0.1.20"]
    assert len(measured) == len(QWEN3)
    assert {p.source for p in measured} == {"measured in turn with ours"}
    # others' published times are of another day and board
    assert {p.rank for p in group.peers} == {0}


def test_where_no_peer_was_measured_the_published_times_stand_beside():
    own = [one for one in ROWS if not one.peer]
    (group,) = groups(Sources([ResultFile(synthetic_environment(), own)], peers=PEERS))
    assert {p.rank for p in group.peers} == {2}
    published = [p for p in group.peers if p.name == "Marlin an expert"]
    assert {p.shape for p in published} == {GATE_UP.format("uniform"), DOWN.format("uniform")}


def test_a_peer_of_another_run_is_second_to_one_of_the_same():
    (problem, *_) = QWEN3
    ours, _, humming, _ = rows_of(problem)
    earlier = synthetic_environment(date="2026-11-20T00:00:00.000+00:00")
    of_before = replace(humming, us=1.0, us_low=1.0, us_high=1.0, samples=(1.0,))
    of_before = replace(of_before, run=earlier["date"], config={"other": 1})
    file = ResultFile(synthetic_environment(), [ours, of_before], [earlier])
    (group,) = groups(Sources([file]))
    assert [(p.us, p.rank, p.source) for p in group.peers] == [
        (1.0, 1, "measured on another day or board")
    ]
    file.rows.append(humming)
    (group,) = groups(Sources([file]))
    assert [(p.us, p.rank) for p in group.peers] == [(humming.us, 0)]


def test_a_peer_that_was_wrong_is_not_beside():
    wrong = replace(ROWS[2], ok=False, status="wrong")
    (group,) = groups(Sources([ResultFile(synthetic_environment(), [*ROWS[:2], wrong])]))
    assert group.peers == ()


def test_peers_alone_are_no_board():
    alone = [one for one in ROWS if one.peer]
    assert groups(Sources([ResultFile(synthetic_environment(), alone)])) == []


def test_the_verdict_names_the_layer_and_the_tokens(group):
    text = " ".join(f"{one.lead} {one.text}" for one in (*verdict(group), *in_detail(group)))
    assert "grouped_gemm, cold, where memory binds, tokens 4 to 1024:" in text
    assert "worst 67 % at" in text
    assert "Against cuBLAS an expert: faster on" in text


def test_the_table_has_all_layers_and_the_peers_of_the_same_run(report):
    found = table(report, "Fastest of each problem: grouped_gemm, NVIDIA H200, cold")
    own = [one for one in found if one["shape"] == GATE_UP.format("skewed")]
    assert [one["tokens"] for one in own] == ["1", "4", "16", "64", "256", "1024", "4096"]
    assert own[0]["design"] == "grouped_decode"
    assert float(own[0]["humming 0.1.20 µs"]) > 0
    assert float(own[0]["cuBLAS an expert µs"]) > 0
    assert float(own[0]["4-bit / ours"].removesuffix("×")) > 1


def test_the_pictures_have_a_panel_a_layer(report):
    kinds = ("roofline", "time", "fraction", "experts")
    assert {f"grouped-gemm-{kind}.svg" for kind in kinds} <= set(report)
    title = "Time per call against tokens: grouped_gemm, NVIDIA H200, cold"
    assert title in report["report.html"]
    for kind in ("time", "experts"):
        panels = re.findall(r">(E128 k8 [^<]*)</text>", report[f"grouped-gemm-{kind}.svg"])
        assert len(panels) == 4


def test_the_experts_that_are_hit_are_drawn_behind(report):
    points = json.loads(report["grouped-gemm-experts.json"])["data"]["points"]
    hit = {p["size"]: p["hit"] for p in points}
    assert hit[1] == pytest.approx(8.0)
    assert hit[4096] == pytest.approx(128.0)
