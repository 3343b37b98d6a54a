"""The data of perf/: model shapes and peers' times."""

from dataclasses import replace

import pytest

from ferrum_numba import gpu, results
from ferrum_numba.errors import StoreError
from ferrum_numba.kernels.grouped import expert_bytes
from ferrum_numba.kernels.prefill.kernel import Config, Prefill
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.perf import add_run, against_cublas, peers, problems
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.perf.problems import PROBLEM_SETS, Shape, cross
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.results import Row

DENSE = [row for row in PEERS[0]["rows"] if row["op"] == "w4a16_gemm"]
MOE = [row for row in PEERS[0]["rows"] if row["op"] == "grouped_gemm"]


def us_of(rows, kind, **sizes):
    found = [
        row["us"] for row in rows if row["kind"] == kind and sizes.items() <= row["problem"].items()
    ]
    assert found
    return min(found)


def test_problem_sets_have_every_projection_and_m():
    assert {name: len(found) for name, found in PROBLEM_SETS.items()} == {
        "llama3-8b": 48, "llama3-70b": 48, "qwen2.5-32b": 48, "gemma3-27b": 48, "h200-peers": 72,
        "curve": 58, "qwen3-moe": 14, "mixtral": 14, "deepseek-v3-moe": 14, "qwen3-moe-skewed": 14,
        "mixtral-skewed": 14, "deepseek-v3-moe-skewed": 14, "qwen3-moe-gated": 7,
        "mixtral-gated": 7, "deepseek-v3-moe-gated": 7, "w4a8-peers": 24, "llama3-8b-w4a8": 48,
    }  # fmt: skip
    assert all(len(set(found)) == len(found) for found in PROBLEM_SETS.values())


@pytest.mark.parametrize(
    ("model", "projection", "size_mb"),
    [
        ("llama3-8b", "qkv", 12.98), ("llama3-8b", "o", 8.65), ("llama3-8b", "gate_up", 60.56),
        ("llama3-8b", "down", 30.28), ("llama3-70b", "qkv", 43.25), ("llama3-70b", "o", 34.60),
        ("llama3-70b", "gate_up", 242.2), ("llama3-70b", "down", 121.1),
        ("qwen2.5-32b", "qkv", 18.92), ("qwen2.5-32b", "o", 13.52),
        ("qwen2.5-32b", "gate_up", 146.0), ("qwen2.5-32b", "down", 72.99),
        ("gemma3-27b", "qkv", 22.7), ("gemma3-27b", "o", 11.4), ("gemma3-27b", "gate_up", 119.2),
        ("gemma3-27b", "down", 59.6),
    ],
)  # fmt: skip
def test_shapes_have_the_published_size(model, projection, size_mb):
    shape = problems.MODELS[model][projection]
    size_bytes = shape.K * shape.N // 2 + 2 * (shape.K // 128) * shape.N
    assert size_bytes / 1e6 == pytest.approx(size_mb, rel=5e-3)


@pytest.mark.parametrize(
    ("model", "projection", "size_mb"),
    [
        ("qwen3-moe", "gate_up", 1.62), ("qwen3-moe", "down", 0.81), ("mixtral", "gate_up", 60.56),
        ("mixtral", "down", 30.28), ("deepseek-v3-moe", "gate_up", 15.14),
        ("deepseek-v3-moe", "down", 7.57),
    ],
)  # fmt: skip
def test_experts_have_the_published_size(model, projection, size_mb):
    shape = problems.MOE_MODELS[model][projection]
    for problem in problems.routed([shape], (1, 4), "skewed"):
        assert expert_bytes(problem) / 1e6 == pytest.approx(size_mb, rel=5e-3)
        assert (problem.routing, problem.per_pair) == ("skewed", projection == "down")


def test_only_qwen_has_a_bias_and_only_on_qkv():
    biased = [
        (model, name)
        for model, layers in problems.MODELS.items()
        for name, shape in layers.items()
        if shape.bias
    ]
    assert biased == [("qwen2.5-32b", "qkv")]


def test_cross_keeps_a_weight_together():
    found = cross([Shape(64, 128), Shape(128, 64, bias=True)], (1, 2), 32)
    assert [(p.M, p.N, p.K) for p in found] == [
        (1, 128, 64), (2, 128, 64), (1, 64, 128), (2, 64, 128)
    ]  # fmt: skip
    assert [p.bias for p in found] == [False, False, True, True]
    assert {p.group_size for p in found} == {32}


def test_peers_cover_their_problem_set():
    wanted = {(p.M, p.N, p.K) for p in PROBLEM_SETS["h200-peers"]}
    for kind in ("4-bit", "fp16"):
        found = [
            tuple(row["problem"][name] for name in "MNK") for row in DENSE if row["kind"] == kind
        ]
        assert len(found) == 72
        assert set(found) == wanted


@pytest.mark.parametrize(
    ("M", "K", "N", "peer_us", "cublas_us"),
    [
        (1, 4096, 4096, 6.5, 12.8),
        (64, 8192, 28672, 71.9, 119.5),
        (4096, 28672, 8192, 2847.7, 3122.0),
        (4096, 4096, 4096, 202.2, 209.6),
    ],
)
def test_cells_of_the_published_table(M, K, N, peer_us, cublas_us):
    assert us_of(DENSE, "4-bit", M=M, K=K, N=N) == peer_us
    assert us_of(DENSE, "fp16", M=M, K=K, N=N) == cublas_us


def test_cells_of_the_moe_table():
    assert len(MOE) == 18 * 4
    sizes = {"tokens": 4096, "num_experts": 8}
    assert us_of(MOE, "4-bit", **sizes) == 3977.6
    assert us_of(MOE, "fp16", **sizes) == 3112.0


def test_no_peer_is_faster_than_the_plain_read():
    for row in DENSE:
        floor = peers.read_floor_us(row["problem"]["K"], row["problem"]["N"])
        assert row["us"] > floor
    assert peers.read_floor_us(8192, 28672) == 29.08
    assert peers.read_floor_us(1, 2) is None


def test_the_table_says_where_it_comes_from():
    table = PEERS[0]
    assert (table["gpu"], table["date"], table["regime"]) == ("NVIDIA H200", "2026-11-22", "cold")
    assert "humming-kernels 0.1.19" in table["source"]


def test_what_is_fastest_of_a_result_file_is_timed_against_cublas():
    rows = results.load(RESULTS).rows
    found = against_cublas.fastest(rows, (128, 1024))
    assert {problem.M for problem, _, _ in found} == {128, 1024}
    for problem, kernel, config in found:
        assert kernel.misfit(config, problem, gpu.KNOWN["h200"]) is None
        assert not kernel.needs_cublas


def test_the_table_against_cublas_says_how_many_times_as_fast():
    found = against_cublas.Found(W4A16Problem(128, 4096, 8192), Prefill(), Config())
    table = against_cublas.table([against_cublas.Timed(found, 20.0, 25.0)])
    assert table.splitlines()[2:] == ["| 8192 × 4096 | 128 | **20.0** | `prefill` | 25.0 | 1.25 |"]


def test_a_result_file_without_these_rows_is_refused():
    with pytest.raises(StoreError, match=r"w4a16_gemm\.json has no row with M = 5, 7"):
        against_cublas.main(["--m", "5,7"])


def measured(us, stripes=True, M=256, run="new", **more):
    """Return a row of a result file, as `add_run` reads it."""
    config = {"tile_m": 128, "tile_n": 256, "stripes": stripes}
    return Row("prefill", "w4a16_gemm", {"M": M}, config | more, us=us, run=run)


def run_of(date, *rows, store="/tmp/run"):
    command = f"ferrum-numba tune prefill --store {store} --limit 4"
    return results.ResultFile({"date": date, "command": command}, list(rows))


@pytest.mark.parametrize(
    ("old", "stays"),
    [
        # measured again
        (measured(80.0, run="old"), False),
        # written before a field was there, and measured again all the same
        (measured(80.0, run="old", pair=False), False),
        # another config, and within what boards differ by, or not
        (measured(98.0, False, run="old"), False),
        (measured(96.0, False, run="old"), True),
        (replace(measured(96.0, False, run="old"), status="slow"), False),
        # another problem, another kernel
        (measured(200.0, M=512, run="old"), True),
        (replace(measured(200.0, run="old"), kernel="marlin"), True),
    ],
)  # fmt: skip
def test_of_what_a_run_measured_again_older_rows_go(old, stays):
    got = add_run.add(run_of("old", old), run_of("new", measured(100.0)))
    assert [row.us for row in got.rows] == ([old.us] if stays else []) + [100.0]
    assert [env["date"] for env in got.earlier] == (["old"] if stays else [])
    assert got.environment["command"] == "ferrum-numba tune prefill --limit 4"


def test_a_run_whose_fastest_row_goes_leaves_none_of_other_kernels():
    slower = replace(measured(90.0, run="old"), kernel="marlin")
    baseline = replace(measured(200.0, run="older"), kernel="marlin")
    old = run_of("old", measured(80.0, run="old"), slower, baseline)
    got = add_run.add(old, run_of("new", measured(100.0)))
    assert [row.us for row in got.rows] == [200.0, 100.0]


def test_a_peer_s_row_stays_until_the_peer_is_measured_again():
    def peer(us, run, config):
        row = measured(us, run=run, layout=config)
        return replace(row, kernel="humming", more={"peer": "humming", "kind": "4-bit"})

    # its time neither drives out a row of ours nor goes with one
    old = run_of("old", measured(120.0, run="old"), peer(50.0, "old", "a"))
    got = add_run.add(old, run_of("new", measured(100.0)))
    assert [row.us for row in got.rows] == [50.0, 100.0]
    got = add_run.add(got, run_of("newer", peer(60.0, "newer", "b")))
    assert [row.us for row in got.rows] == [100.0, 60.0]


def test_runs_are_added_to_a_result_file(tmp_path, capsys):
    store, run = tmp_path / "store.json", tmp_path / "run.json"
    file = results.load(RESULTS)
    again = [row for row in file.rows if row.kernel == "prefill" and row.problem["M"] == 256]
    results.save(store, file)
    results.save(run, results.ResultFile(file.environment, again, file.earlier))
    add_run.main([str(run), "--results", str(store)])
    kept = results.load(store).rows
    assert [row for row in kept if row in again] == again
    assert len(kept) <= len(file.rows)
    assert str(store) in capsys.readouterr().out
