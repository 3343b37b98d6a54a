"""Layers of experts in an export: rows that an engine can follow, and what they give."""

import json
from dataclasses import replace
from pathlib import Path

import gpu_of_host
import jsonschema
import numpy as np
import pytest
from moe_layers import Experts as Tensors
from moe_layers import assert_rows, logits_of, x_of
from small_export import TYPES, tensors_of

import ferrum_numba
from ferrum_numba import interpreter
from ferrum_numba.contract import Launch, Tolerance
from ferrum_numba.errors import ProblemError
from ferrum_numba.export import Options, export
from ferrum_numba.export.experts import Experts, experts_rows
from ferrum_numba.export.folder import load
from ferrum_numba.export.programs import Programs
from ferrum_numba.export.vectors import has_vector, vector
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.linear.moe import MoeLayer
from ferrum_numba.reference.moe import route_topk

GPU = KNOWN["h200"]
GATE_UP = GroupedProblem(3, 4, 2, 128, 128, 64)
SCHEMAS = Path(ferrum_numba.__file__).parent / "export" / "schema"


def of(problem, bias_mode="fused"):
    return Experts.of(problem, None, bias_mode)


@pytest.mark.parametrize("change", [{}, {"gated": True}, {"weighted": True, "tokens": 9}])
def test_either_gemm_names_the_layer(change):
    down = GroupedProblem(16, 4, 2, 128, 64, 64, per_pair=True)
    assert of(replace(GATE_UP, **change)) == of(down)
    key = of(down).key()
    assert (key["H"], key["inner"], key["group_size"]) == (128, 64, 64)


def test_a_row_for_each_number_of_tokens_and_each_way_to_be_routed():
    rows = list(experts_rows(of(GATE_UP), (3, 1, 3), [], Programs(GPU)))
    assert [(row["tokens"], row["logits"]) for row in rows] == [
        (T, logits) for T in (1, 3) for logits in ("fp16", "fp32", None)
    ]
    assert all("list_" not in name for row in rows[:3] for name in row["scratch"])
    assert not any(row["tuned"] for row in rows)
    assert rows[-1]["operands"][2:4] == ["topk_ids", "topk_weights"]
    assert rows[-1]["parts"] == {}


class Engine:
    """Follows a row on host memory: each launch by the interpreter."""

    def __init__(self, row, programs, store_of):
        self._row, self._programs = row, programs
        self.buffers = {
            name: np.full(size, 0xA5, np.uint8) for name, size in row["scratch"].items()
        }
        for name, part in row["parts"].items():
            self.buffers[name] = self.buffers[part["of"]][part["at"] :]
        self.workspace = {}
        for stack, store in store_of.items():
            for name in ("packed", "scales", "zero_points", "bias", "perm"):
                held = name in store.operands
                array = store.operands.whole(name) if held else np.zeros(0, np.uint8)
                self.buffers[f"{stack}.{name}"] = np.ascontiguousarray(array).reshape(-1)
        self.buffers["expert_map"] = np.zeros(0, np.uint8)

    def run(self, **given):
        buffers = self.buffers | given
        for launch in self._row["launches"]:
            one = self._programs.by_symbol[launch["symbol"]]
            program = one.kernel.build(one.config, GPU.arch)
            for name, size in launch["workspace"].items():
                if self.workspace.get(name, np.zeros(0)).size < size:
                    self.workspace[name] = np.zeros(size, np.uint8)
            takes = {taker: buffers[name] for taker, name in launch["buffers"].items()}
            takes |= {name: self.workspace[name] for name in launch["workspace"]}
            grid = tuple(launch["grid"])
            interpreter.run(program, Launch(grid, launch["scalars"]), takes, unwritten=())


KINDS = {
    "plain": ({}, {}, "fused"),
    "two steps": ({"bias": True, "zeros": "gptq"}, {"bias": True, "zero_points": "gptq"},
                  "two_step"),
    "act-order": ({"act_order": True, "inner": 128}, {"act_order": True, "N": 256}, "fused"),
}  # fmt: skip


@pytest.mark.parametrize("logits", ["fp32", None])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_follows_a_row_gets_the_experts_sums(kind, tokens, logits):
    tensors, change, mode = KINDS[kind]
    experts = Tensors(**tensors)
    layer = MoeLayer.from_gptq(experts.gate_up, experts.down, top_k=2, device="cpu", bias_mode=mode)
    small = replace(GPU, num_sms=gpu_of_host.GPU.num_sms)
    programs = Programs(small)
    asked = of(replace(GATE_UP, **change), mode)
    row = next(r for r in experts_rows(asked, (tokens,), [], programs) if r["logits"] == logits)
    engine = Engine(row, programs, {"gate_up": layer.gate_up, "down": layer.down})
    x, out = x_of(tokens, 128), np.full((tokens, 128), np.nan, np.float16)
    found = logits_of(tokens, 4)
    ids, weights = route_topk(found, 2)
    given = {"logits": found} if logits else {"topk_ids": ids, "topk_weights": weights}
    for _ in range(2):
        # again, on scratch and workspace as they were left
        engine.run(x=x, out=out, **given)
        assert_rows(out, experts.expected(x, ids, weights, two_step=mode == "two_step"))


def test_experts_are_packed():
    with pytest.raises(ProblemError, match='experts of a layer are packed; got store "raw"'):
        Experts.of(GATE_UP, "raw", "fused")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an export of one small layer."""
    out = tmp_path_factory.mktemp("experts") / "out"
    export([GATE_UP], GPU, out, Options(vectors=True))
    return out


def test_files_are_of_their_schema_and_every_launch_has_what_it_takes(folder):
    manifest, dispatch = load(folder)
    for name, found in (("manifest", manifest), ("dispatch", dispatch)):
        schema = json.loads((SCHEMAS / f"{name}.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(found)
    assert dispatch["rows"] == []
    assert {(row["K"], row["N"]) for row in dispatch["repack"]} == {(128, 128), (64, 128)}
    entries = {entry["symbol"]: entry for entry in manifest["entries"]}
    for row in dispatch["experts"]:
        there = {*row["operands"], *row["scratch"], *row["parts"]}
        for launch in row["launches"]:
            parameters = entries[launch["symbol"]]["parameters"]
            taken = {*launch["scalars"], *launch["workspace"], *launch["buffers"]}
            assert taken == {parameter["name"] for parameter in parameters}
            assert set(launch["buffers"].values()) <= there


def test_every_program_with_a_result_of_one_type_has_a_vector(folder):
    manifest, _ = load(folder)
    without = [e["kernel"] for e in manifest["entries"] if not e.get("vectors")]
    assert set(without) == {"route_topk"}
    for entry in manifest["entries"]:
        for record in entry.get("vectors", ()):
            found = tensors_of((folder / record["file"]).read_bytes())
            read = {p["name"] for p in entry["parameters"] if p.get("access") == "read"}
            assert {*found} - {"expected"} == read
            if entry["kernel"] == "align_tokens":
                assert record["out"] == "I32"
                assert found["expected"].dtype == np.int32


def test_the_kernels_own_source_agrees_with_its_vectors():
    """Launched by what a vector says and nothing else."""
    programs = Programs(replace(GPU, num_sms=gpu_of_host.GPU.num_sms))
    for problem in (GATE_UP, replace(GATE_UP, bias=True, act_order=True, dtype="bf16")):
        list(experts_rows(of(problem, "two_step"), (1, 3), [], programs))
    for one in filter(has_vector, programs):
        record, data = vector(one, programs)
        tensors = tensors_of(data)
        want, kind = tensors.pop("expected"), TYPES[record["out"]]
        out = np.full(want.size * kind.itemsize, 0xFF, np.uint8).view(kind).reshape(want.shape)
        workspace = {name: np.zeros(size, np.uint8) for name, size in record["workspace"].items()}
        launch = Launch(tuple(record["grid"]), record["scalars"])
        program = one.kernel.build(one.config, GPU.arch)
        interpreter.run(program, launch, {**tensors, **workspace, "out": out})
        result = Tolerance(**record["tolerance"], reason="the manifest's").compare(out, want)
        assert result.ok, (one.symbol, result.message)
