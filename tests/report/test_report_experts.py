"""The report of layers of experts: named by what they are, peers measured in turn beside them."""

from dataclasses import asdict, replace

import pytest
from test_report import H200, contents, synthetic_environment, table

from ferrum_numba.kernels.grouped import OP
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.report import Sources, boards, write
from ferrum_numba.report.verdict import verdict
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
def board():
    (found,) = boards(SOURCES)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return contents(write(tmp_path_factory.mktemp("experts"), SOURCES))


def test_a_layer_is_named_by_its_experts(board):
    routings = ("uniform", "skewed")
    wanted = {layer.format(routing) for layer in (GATE_UP, DOWN) for routing in routings}
    assert {p.shape for p in board.points} == wanted
    assert board.size_name == "tokens"
    assert {p.size for p in board.points} == {1, 4, 16, 64, 256, 1024, 4096}


def test_rows_of_peers_are_none_of_ours(board):
    assert {row.kernel for row in board.rows} == {"grouped_decode", "grouped_wgmma"}
    assert {p.kernel for p in board.points} == {"grouped_decode", "grouped_wgmma"}
    measured = [p for p in board.peers if p.date == "2026-11-22" and p.name == "humming 0.1.20"]
    assert len(measured) == len(QWEN3)
    assert {p.source for p in measured} == {"measured in turn with ours"}
    # others' published times are of uniform routings
    published = [p for p in board.peers if p.name == "Marlin an expert"]
    assert {p.shape for p in published} == {GATE_UP.format("uniform"), DOWN.format("uniform")}


def test_a_peer_that_was_wrong_is_not_beside():
    wrong = replace(ROWS[2], ok=False, status="wrong")
    (board,) = boards(Sources([ResultFile(synthetic_environment(), [*ROWS[:2], wrong])]))
    assert board.peers == ()


def test_peers_alone_are_no_board():
    alone = [one for one in ROWS if one.peer]
    assert boards(Sources([ResultFile(synthetic_environment(), alone)])) == []


def test_the_verdict_names_the_layer_and_the_tokens(board):
    text = " ".join(verdict(board))
    assert "28 problems, 28 with a correct, trusted time" in text
    assert "Memory-bound" in text
    assert "Memory-bound (16 problems, tokens 4 to 1024)" in text
    assert f"furthest is {GATE_UP.format('uniform')}, tokens=4" in text
    assert "cuBLAS an expert (2026-11-22): faster on" in text


def test_a_layer_s_table_has_all_kernels_and_the_best_peers(report):
    found = table(report, f"{GATE_UP.format('skewed')}, grouped_gemm")
    assert [one["tokens"] for one in found] == sorted(
        2 * ["1", "4", "16", "64", "256", "1024", "4096"], key=int
    )
    first = found[0]
    assert (first["kernel"], first["verdict"]) == ("grouped_decode", "best")
    assert first["best 4-bit peer µs"].endswith(" humming 0.1.20")
    assert first["fp16 peer µs"].endswith(" cuBLAS an expert")
    assert float(first["peer / ours"].removesuffix("×")) > 1


def test_of_a_published_and_a_measured_time_the_faster_is_the_peer_s(report):
    found = table(report, f"{DOWN.format('uniform')}, grouped_gemm")
    cells = {one["tokens"]: one["best 4-bit peer µs"] for one in found}
    # 7.2 us is published of vLLM for one token, 36.9 of humming for 64
    assert cells["1"] == "4.382 humming 0.1.20"
    assert cells["64"] == "36.90 humming"


def test_the_pictures_have_a_panel_a_layer(report):
    assert {"roofline.svg", "time.svg", "fraction.svg"} <= set(report)
    title = "Time per call against tokens: NVIDIA H200, grouped_gemm, cold"
    assert title in report["report.html"]
    # text that is drawn as a path stands beside it
    assert report["time.svg"].count("<!-- E128 k8 ") == 4
