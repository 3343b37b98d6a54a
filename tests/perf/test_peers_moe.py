"""perf/peers_moe.py: what it reads, asks its rivals for and writes, without a GPU."""

import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from ferrum_numba import results
from ferrum_numba.errors import ConfigError, DeviceError, MismatchError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.grouped import OP, GroupedProblem
from ferrum_numba.kernels.grouped_decode.kernel import GroupedDecode
from ferrum_numba.kernels.grouped_wgmma.kernel import GroupedWgmma
from ferrum_numba.measure import Samples
from ferrum_numba.perf import peers_moe, routed_humming, routed_rivals, routed_rows
from ferrum_numba.perf.problems import ExpertShape
from ferrum_numba.perf.routed_rivals import Layer, Rival, Stack
from ferrum_numba.results import Decision

PROBLEM = GroupedProblem(5, 4, 2, 64, 256)
PICKED = {
    "block_shape": (8, 256, 128), "warp_shape": (8, 64, 64), "num_stages": 4, "num_ctas_per_sm": 2,
    "use_stream_k": False,
}  # fmt: skip


def rival(name="grouped", us=10.0, peer="", kind="", **config):
    """Return a rival whose time `timed` knows."""
    return Rival(name, {"tile_m": 8, **config}, [us], lambda: None, lambda: None, peer, kind)


def timed(device, calls, regime, policy):
    assert regime == "cold"
    (us,) = calls
    return Samples((us,) * policy.samples, "cold", 7, (1980.0, 1980.0), 500.0, 50.0, ())


@pytest.fixture
def on_cpu(monkeypatch):
    """Let PyTorch's tensors be in the host's memory."""
    torch = pytest.importorskip("torch")
    for module in (routed_rivals, routed_humming):
        monkeypatch.setattr(module, "on_gpu", lambda array: torch.tensor(array.copy()))
        monkeypatch.setattr(module, "on_stream", lambda launch: lambda stream: launch())
    return torch


def made(problem):
    inputs = OP.make_inputs(problem, np.random.default_rng(0))
    return inputs, Layer(problem, inputs, Stack(problem, inputs))


def test_a_layer_has_a_name_or_sizes():
    assert peers_moe.layer_of("qwen3-moe.down") == ExpertShape(128, 8, 768, 2048, per_pair=True)
    assert peers_moe.layer_of("60,4,2048,1408") == ExpertShape(60, 4, 2048, 1408)
    assert peers_moe.layer_of("60,4,1408,2048,pair").per_pair


@pytest.mark.parametrize("text", ["qwen3", "qwen3-moe.up", "8,2,4096", "8,2,4096,x", "8,2,1,1,all"])
def test_what_is_no_layer_is_refused(text):
    with pytest.raises(ProblemError, match=rf"a layer is qwen3-moe\.gate_up, .* got {text}$"):
        peers_moe.layer_of(text)


def test_the_command_line_knows_its_words(capsys):
    with pytest.raises(SystemExit):
        peers_moe.main(["--only", "marlin"])
    assert "marlin is none of ours, humming, cublas" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        peers_moe.main(["--tokens", "4,0"])
    assert "0 is no whole number above 0" in capsys.readouterr().err


def test_without_humming_it_says_how_to_go_on(monkeypatch):
    def missing(package):
        raise routed_humming.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(routed_humming.metadata, "version", missing)
    with pytest.raises(DeviceError, match=r"not installed: .*==0\.1\.20, .* --only ours,cublas$"):
        peers_moe.main(["--only", "humming", "--tokens", "1"])


def test_only_symmetric_fp16_is_compared_with_humming(monkeypatch):
    monkeypatch.setattr(routed_humming, "version", lambda: "0.1.20")
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    with pytest.raises(DeviceError, match=r"in fp16 on symmetric weights; got .*dtype='bf16'"):
        routed_humming.HummingStack(replace(PROBLEM, dtype="bf16"), None)


def test_without_a_kernel_of_ours_it_says_so(monkeypatch):
    monkeypatch.setattr(peers_moe, "KERNELS", ())
    monkeypatch.setattr(peers_moe, "TOOLS", ())
    args = peers_moe._parser().parse_args(["--only", "ours,cublas"])
    with pytest.raises(ConfigError, match=r"no kernel computes grouped_gemm .* --only cublas$"):
        peers_moe._ours(args, KNOWN["h200"], [PROBLEM])


def test_a_kernel_with_a_model_has_candidates_its_choice_first():
    kernel, gpu = GroupedWgmma(), KNOWN["h200"]
    problem = GroupedProblem(1024, 128, 8, 1536, 2048)
    found = peers_moe.chosen_for([problem], gpu, [kernel], [], None, candidates=3)[problem]
    assert len({config for _, config in found}) == 3
    assert found[0] == (kernel, kernel.default(problem, gpu))
    without = peers_moe.chosen_for([problem], gpu, [GroupedDecode()], [], None, candidates=3)
    assert len(without[problem]) == 1


def test_each_kernel_runs_what_was_decided_for_it():
    kernel, gpu = GroupedDecode(), KNOWN["h200"]
    problems = [PROBLEM, replace(PROBLEM, tokens=64)]
    usual = peers_moe.chosen_for(problems, gpu, [kernel], [], None)
    assert usual == {p: [(kernel, kernel.default(p, gpu))] for p in problems}
    other = next(
        c
        for c in kernel.configs(gpu)
        if c != usual[PROBLEM][0][1] and kernel.misfit(c, PROBLEM, gpu) is None
    )
    stored = Decision(OP.name, asdict(PROBLEM), kernel.name, asdict(other), 1.0, "final")
    decided = peers_moe.chosen_for(problems[:1], gpu, [kernel], [stored], None)
    assert decided[PROBLEM] == [(kernel, other)]
    with pytest.raises(ConfigError, match="has no field tile_q; did you mean tile_m"):
        peers_moe.chosen_for(problems, gpu, [kernel], [], "tile_q=1")
    refused = replace(PROBLEM, act_order=True)
    assert peers_moe.chosen_for([refused], gpu, [kernel], [], None) == {refused: []}


def test_the_pick_comes_first_and_nothing_twice():
    asked = []

    def picked(pairs):
        asked.append(pairs)
        return {**PICKED, "num_stages": 4 if pairs <= 32 else 5}

    found = list(routed_humming.candidates(picked, 32))
    assert asked == [32, 8, 16, 32, 64, 128]
    assert found[0] == PICKED
    assert len(found) == len({repr(sorted(config.items())) for config in found})
    # of more pairs, and a step from what is picked
    assert sum(config["num_stages"] == 5 for config in found) == 1
    assert {config["num_ctas_per_sm"] for config in found} == {1, 2, 3, 4}
    assert {config["use_stream_k"] for config in found} == {False, True}
    assert {config["block_shape"][0] for config in found} == {8, 16}
    assert all(config["block_shape"][0] == config["warp_shape"][0] for config in found)


def test_a_config_is_stored_as_text_and_numbers():
    flat = routed_humming.flat({"gemm_type": "indexed", **PICKED})
    assert flat["block_shape"] == "8x256x128"
    assert flat["use_stream_k"] is False


def test_the_fastest_that_is_right_is_timed(monkeypatch, capsys):
    def checked(device, rival, want):
        if rival.config["tile_m"] == 24:
            raise MismatchError("it is wrong")
        if rival.config["tile_m"] == 32:
            raise RuntimeError("TMA Encode\n  Failed")
        return 3e-4

    monkeypatch.setattr(peers_moe.routed_rivals, "checked", checked)
    monkeypatch.setattr(peers_moe, "measure", timed)
    rivals = [rival(us=us, tile_m=m) for us, m in ((9.0, 8), (7.0, 16), (1.0, 24), (1.0, 32))]
    best, error = peers_moe.fastest(None, rivals, None)
    assert (best.config["tile_m"], error) == (16, 3e-4)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "grouped is left out: it is wrong; {'tile_m': 24}",
        "grouped is left out: TMA Encode Failed; {'tile_m': 32}",
    ]
    assert peers_moe.fastest(None, rivals[2:], None) is None


def test_rows_are_kept_problem_by_problem(tmp_path):
    environment = dict.fromkeys(results.ENVIRONMENT, "")
    environment |= {"versions": {}, "clocks": {}, "policy": {}, "dirty": False}
    environment |= {"date": "2026-12-01T00:00:00.000+00:00", "gpu_facts": asdict(KNOWN["h200"])}
    samples = [timed(None, rival(us=us).calls, "cold", peers_moe.POLICY) for us in (10.0, 11.0)]
    rows = [
        routed_rows.row_of(problem, rival(), 3e-4, [one], KNOWN["h200"])
        for problem, one in zip((PROBLEM, replace(PROBLEM, tokens=6)), samples, strict=True)
    ]
    file, path = results.ResultFile(environment), tmp_path / "h200" / "grouped_gemm.json"
    taken = iter([[rows[0]], [], [rows[1]]])
    for count, found in enumerate(peers_moe.kept(taken, file, tmp_path, KNOWN["h200"], OP.name)):
        assert found == [rows[count]]
        assert count == (len(results.load(path).rows) if path.exists() else 0)
    assert len(results.load(path).rows) == 2


def test_rows_are_those_of_a_result_file(monkeypatch, tmp_path):
    monkeypatch.setattr(peers_moe, "measure", timed)
    rivals = [
        rival(us=10.0),
        rival("humming", 12.5, "humming 0.1.20", "4-bit", block_shape="8x128x64"),
        rival("cublas_an_expert", 40.0, "cuBLAS an expert", "fp16", layout="rows"),
    ]
    taken = peers_moe.in_turn(None, rivals, 2)
    assert [[len(one.us) for one in found] for found in taken] == [[11, 11]] * 3
    gpu = KNOWN["h200"]
    rows = [
        routed_rows.row_of(PROBLEM, one, 3e-4, samples, gpu)
        for one, samples in zip(rivals, taken, strict=True)
    ]
    line = routed_rows.line(rows)
    assert line.startswith("| E4 k2 256→64 | uniform | 5 | 4 | ")
    assert line.endswith(" | **10.0** | `grouped` | 12.5 | 40.0 | 1.25 |")
    environment = dict.fromkeys(results.ENVIRONMENT, "")
    environment |= {"versions": {}, "clocks": {}, "policy": {}, "dirty": False}
    environment |= {"date": "2026-12-01T00:00:00.000+00:00", "gpu_facts": asdict(gpu)}
    for _ in range(2):
        peers_moe.store(tmp_path, gpu, results.ResultFile(environment, rows), OP.name)
    stored = results.load(tmp_path / "h200" / "grouped_gemm.json")
    assert [(row.kernel, row.us, row.more.get("peer")) for row in stored.rows] == [
        ("grouped", 10.0, None),
        ("humming", 12.5, "humming 0.1.20"),
        ("cublas_an_expert", 40.0, "cuBLAS an expert"),
    ]
    assert stored.rows[1].problem["routing"] == "uniform"
    assert {row.run for row in stored.rows} == {environment["date"]}


@pytest.mark.parametrize("per_pair", [False, True])
def test_torch_wants_what_the_reference_does(on_cpu, per_pair):
    problem = replace(PROBLEM, per_pair=per_pair, group_size=96)
    inputs, layer = made(problem)
    want = on_cpu.tensor(OP.reference(problem, inputs))
    assert routed_rivals.relative_error(layer.want(), want) < 1e-5
    wrong = layer.want()
    wrong[3] *= 1.1
    assert routed_rivals.relative_error(wrong, want) > routed_rivals.MOST_ERROR
    wrong[3] = float("nan")
    assert routed_rivals.relative_error(wrong, want) == float("inf")


def test_dropped_pairs_are_nobodys(on_cpu):
    inputs = OP.make_inputs(PROBLEM, np.random.default_rng(0))
    inputs["ids"][1, 0], inputs["ids"][4, 1] = -1, 4
    layer = Layer(PROBLEM, inputs, Stack(PROBLEM, inputs))
    want = layer.want()
    assert want[:, 0].isnan().nonzero().flatten().tolist() == [2, 9]
    got = want.clone()
    got[2] = 0.0
    assert routed_rivals.relative_error(got, want) == 0.0


@pytest.mark.parametrize("per_pair", [False, True])
def test_cublas_multiplies_an_expert_at_a_time(on_cpu, per_pair):
    _, layer = made(replace(PROBLEM, per_pair=per_pair, routing="skewed"))
    one = 2 * len(layer.pairs) * PROBLEM.K * PROBLEM.N
    rivals = routed_rivals.cublas(layer, rotate_bytes=3 * one)
    assert [len(rival.calls) for rival in rivals] == [4, 4]
    assert [rival.config["layout"] for rival in rivals] == ["rows", "columns"]
    assert layer.stack.dense("columns", 1)[0].stride()[1:] == (1, PROBLEM.K)
    device = type("Device", (), {"synchronize": lambda self: None})()
    for found in rivals:
        assert routed_rivals.checked(device, found, layer.want()) < 5e-4
        with pytest.raises(MismatchError, match="cublas_an_expert is wrong"):
            routed_rivals.checked(device, found, 1.01 * layer.want())


def test_humming_gets_gptq_words(on_cpu):
    inputs, layer = made(PROBLEM)
    words = routed_humming.qweight(layer.stack.codes).numpy()
    assert words.shape == (4, 32, 64)
    k = 37
    assert (words[:, k // 8] >> 4 * (k % 8) & 15 == inputs["codes"][:, k]).all()


def test_humming_finds_its_rows(on_cpu):
    """What its kernel does with a block: rows sorted_ids // top_k times the block's expert."""
    _, layer = made(PROBLEM)
    for gemm in routed_humming.GEMMS:
        routed = routed_humming.Routed(layer, gemm)
        arguments = routed.arguments(8)
        assert routed.arguments(16) is arguments if routed.sorted else arguments["top_k"] == 2
        routed.out.fill_(float("nan"))
        multiply = partial(sorted_gemm if routed.sorted else indexed_gemm, layer, routed.out)
        multiply(**arguments)
        assert routed_rivals.relative_error(routed.result(), layer.want()) < 5e-4


def indexed_gemm(layer, out, inputs, sorted_ids, expert_ids, num_tokens_padded, top_k):
    assert num_tokens_padded.tolist() == [len(sorted_ids)] == [8 * len(expert_ids)]
    for expert, ids in zip(expert_ids.tolist(), sorted_ids.split(8), strict=True):
        ids = ids[ids < len(out)].long()
        out[ids] = (inputs[ids // top_k].float() @ layer.stack.weight(expert)).half()


def sorted_gemm(layer, out, inputs, expert_layout):
    for expert in range(4):
        rows = slice(*expert_layout[expert : expert + 2].tolist())
        out[rows] = (inputs[rows].float() @ layer.stack.weight(expert)).half()
