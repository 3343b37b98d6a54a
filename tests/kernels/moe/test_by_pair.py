"""gather_pairs and add_bias_pairs: what each pair's expert has of its own."""

import re
from dataclasses import replace

import numpy as np
import pytest
from moe_runs import UNTOUCHED, interpreted

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.moe.add_bias_pairs import AddBiasPairs, PairBiasProblem
from ferrum_numba.kernels.moe.gather_pairs import GatherPairs, GatherPairsProblem
from ferrum_numba.reference.gather_columns import gather_columns

GATHER, BIAS = GatherPairs(), AddBiasPairs()
KERNELS = (GATHER, BIAS)
GPUS = {"sm_90a": KNOWN["h200"], "sm_80": next(g for g in KNOWN.values() if g.arch == "sm_80")}
IDS = np.array([[1, 0], [2, -1], [3, 1]], np.int32)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("arch", GPUS)
def test_compiles_for_every_gpu(kernel, arch):
    binary = build(kernel, kernel.default(kernel.op.tests[1], GPUS[arch]), arch)
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("number", range(5))
def test_against_the_reference(kernel, number):
    problem = kernel.op.tests[number]
    result = check.on_interpreter(kernel, kernel.default(problem, GPUS["sm_90a"]), problem)
    assert result.ok, result.message


def test_rows_are_gathered_by_their_own_experts_order(rng):
    problem = GatherPairsProblem(3, 3, 2, 16)
    inputs = {**GATHER.op.make_inputs(problem, rng), "ids": IDS}
    got = interpreted(GATHER, problem, inputs)
    for pair, expert in enumerate(IDS.reshape(-1)):
        row = got[pair : pair + 1]
        if 0 <= expert < 3:
            x = inputs["x"][pair // 2 : pair // 2 + 1]
            np.testing.assert_array_equal(row, gather_columns(x, inputs["perm"][expert]))
        else:
            assert (row.view(np.uint8) == UNTOUCHED).all()


def test_a_map_says_whose_bias(rng):
    """Ids of experts elsewhere, and of none, are left alone."""
    problem = PairBiasProblem(3, 2, 2, 8, num_ids=4)
    expert_map = np.array([-1, 1, 0, -1], np.int32)
    inputs = {**BIAS.op.make_inputs(problem, rng), "ids": IDS, "expert_map": expert_map}
    got = interpreted(BIAS, problem, inputs)
    for pair, expert in enumerate([1, -1, 0, -1, -1, 1]):
        if expert < 0:
            assert (got[pair].view(np.uint8) == UNTOUCHED).all()
        else:
            want = inputs["x"][pair].astype("f4") + inputs["bias"][expert].astype("f4")
            np.testing.assert_array_equal(got[pair], want.astype(np.float16))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (lambda: GatherPairsProblem(1, 2, 1, 12), "columns must be a multiple of 8 up to 1048576; "
                                                  "got 12"),
        (lambda: GatherPairsProblem(1, 2, 3, 16), "top_k must be 1 to 16, and no more than the "
                                                  "ids; got top_k = 3, of 2 ids"),
        (lambda: PairBiasProblem(1, 2, 1, 0), "columns must be a multiple of 8 up to 1048576; "
                                              "got 0"),
        (lambda: PairBiasProblem(1, 2, 1, 8, dtype="fp8"), 'got "fp8"'),
    ],
)  # fmt: skip
def test_problems_that_cannot_be(problem, words):
    with pytest.raises(ProblemError, match=re.escape(words)):
        problem()


def test_programmatic_launches_are_for_hopper():
    for kernel in KERNELS:
        problem = kernel.op.tests[1]
        config = kernel.default(problem, GPUS["sm_80"])
        assert not config.programmatic
        assert kernel.misfit(replace(config, programmatic=True), problem, GPUS["sm_80"])
        assert kernel.default(problem, GPUS["sm_90a"]).programmatic


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("number", range(5))
def test_on_gpu(kernel, number, device):
    problem = kernel.op.tests[number]
    result = check.on_gpu(kernel, kernel.default(problem, device.gpu), problem, device)
    assert result.ok, result.message
