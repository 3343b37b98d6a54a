"""What the designs refuse, by name and in the user's numbers: one table of each kind."""

import re
from dataclasses import replace

import pytest

from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
GPTQ, MARLIN, DECODE, DECODE_WGMMA, PREFILL = (
    BY_NAME[name] for name in ("w4a16_gptq", "marlin", "decode", "decode_wgmma", "prefill")
)
H200 = KNOWN["h200"]
IN_ACT_ORDER = W4A16Problem(19, 72, 264, 24, "gptq", act_order=True, bias=True)
ORDERED = W4A16Problem(19, 72, 416, 32, "gptq", bias=True)


def cases(table):
    """Return the rows of a table, each with its kernel, named after what is wrong."""
    return [
        pytest.param(kernel, *row, id=f"{kernel.name}-{row[-1]}")
        for kernel, rows in table.items()
        for row in rows
    ]


# config fields -> what is said of them
CONTRADICTIONS = {
    DECODE: [
        ({"tile_m": 24}, "tile_m must be 8, 16 or 32; got tile_m = 24"),
        ({"warps_n": 3}, "warps_n must be 1, 2, 4 or 8 .*; got warps_n = 3"),
        ({"warps_n": 8, "warps_k": 4}, "at most 16 warps; got 32"),
        ({"step_k": 32}, "step_k must be 64 or 128; got step_k = 32"),
        ({"blocks_per_sm": 0}, "blocks_per_sm must be at least 1; got 0"),
        ({"cluster": 9}, "cluster must be 1 to 8; got cluster = 9"),
        ({"group_size": 48}, r"group_size must be one of \(128, 64, 32, -1\); got 48"),
        ({"dtype": "fp32"}, "dtype must be .fp16. or .bf16.; got .fp32."),
    ],
    DECODE_WGMMA: [
        ({"tile_m": 24}, "tile_m must be 16 or 32; got tile_m = 24"),
        ({"num_warpgroups": 5}, "num_warpgroups must be 1 to 4; got num_warpgroups = 5"),
        ({"tile_k": 32}, "tile_k must be 64 or 128; got tile_k = 32"),
        ({"in_flight": 4}, "in_flight must be 1 to 3; got in_flight = 4"),
        ({"num_stages": 1}, "num_stages must be at least 2; got 1"),
        ({"group_size": 48}, r"group_size must be one of \(128, 64, 32, -1\); got 48"),
        ({"dtype": "fp32"}, 'dtype must be "fp16" or "bf16"; got "fp32"'),
    ],
    PREFILL: [
        ({"tile_m": 24}, "tile_m must be a multiple of 16 from 16 to 256; got 24"),
        ({"tile_m": 272}, "tile_m must be a multiple of 16 from 16 to 256; got 272"),
        ({"tile_n": 64}, "tile_n must be 128 or 256; got 64"),
        ({"cluster": 3}, "cluster must be 1, 2 or 4, .*; got cluster = 3, tile_m = 128"),
        (
            {"tile_m": 80, "cluster": 2},
            "multiple of 16 a block of it; got cluster = 2, tile_m = 80",
        ),
        ({"cluster": 2}, "a cluster of 2 takes no stripes, .*; got stripes = True, pair = False"),
        ({"tile_m": 192, "stripes": False, "cluster": 2}, "no more than 128 rows; .*tile_m = 192"),
        (
            {"tile_n": 128, "tile_m": 64, "scale_sums": True},
            "in tiles of 256 columns and up to 64 rows; got tile_n = 128, tile_m = 64",
        ),
        ({"tile_m": 80, "scale_sums": True}, "up to 64 rows; got tile_n = 256, tile_m = 80"),
        ({"num_stages": 1}, "num_stages must be at least 2; got 1"),
        ({"tile_m": 256, "tile_n": 256}, "tile_m x tile_n .* at most 49152; got 256 x 256"),
        ({"group_size": 48}, r"group_size must be one of \(128, 64, 32, -1\); got 48"),
        ({"dtype": "fp32"}, 'dtype must be "fp16" or "bf16"; got "fp32"'),
    ],
    MARLIN: [
        ({"tile_m": 24}, "tile_m must be 16, 32, 48 or 64.* got tile_m = 24"),
        ({"tile_n": 96}, "tile_n must be 64, 128 or 256.* got tile_n = 96"),
        ({"num_warps": 3}, "num_warps 2 or 4 times tile_n / 64; got .* num_warps = 3"),
        ({"num_stages": 1}, "num_stages at least 2; got .* num_stages = 1"),
        ({"tile_k": 32}, "got tile_k = 32"),
        ({"blocks_per_sm": 0}, "blocks_per_sm must be at least 1; got 0"),
        ({"group_size": 48}, r"group_size must be one of \(128, 64, 32, -1\); got 48"),
    ],
    GPTQ: [
        ({"tile_m": 48}, r"tile_m must be 16, 32 or 64; got 48"),
        ({"tile_n": 80}, r"tile_n must be a multiple of 32, .* got 80"),
        ({"tile_k": 16}, r"tile_k must be 32, 64 or 128; got 16"),
        ({"num_stages": 1}, r"at least 2 .* got num_stages = 1"),
        ({"split_k": 0}, r"at least 1; .* split_k = 0"),
        ({"group_rows": 16}, r"group_rows must be one of \(128, 64, 32, 8, 1\); got 16"),
    ],
}

# a problem -> why this design cannot run it
PROBLEMS = {
    DECODE: [
        (W4A16Problem(1, 128, 128, 16), "group_size in .* got 16, the nearest is 32"),
        (W4A16Problem(1, 128, 256, act_order=True), "got act_order = True"),
    ],
    DECODE_WGMMA: [
        (W4A16Problem(16, 128, 128, 16), "group_size in .* got 16, the nearest is 32"),
        (W4A16Problem(16, 128, 256, act_order=True), "got act_order = True"),
    ],
    PREFILL: [
        (W4A16Problem(64, 256, 128, act_order=True), "needs the columns of x in the order"),
        (W4A16Problem(64, 64, 128), r"needs N of at least 128; got N = 64 \(64 as packed\)"),
        (W4A16Problem(64, 256, 128, 16), "group_size in .* got 16, the nearest is 32"),
    ],
    MARLIN: [
        (W4A16Problem(1, 128, 128, 16), "group_size in .* got 16, the nearest is 32"),
        (
            W4A16Problem(1, 128, 256, act_order=True),
            "x in the order of .* got act_order = True",
        ),
        (W4A16Problem(1, 128, 512, 256), "group_size in .* got 256, the nearest is 128"),
    ],
}

# a config and a problem, each of which is fine -> why they do not go together on an H200
MISFITS = {
    DECODE_WGMMA: [
        (
            DECODE_WGMMA.config(32),
            W4A16Problem(16, 256, 256),
            "tile_m = 32 for M = 16 only adds tokens",
        ),
        (DECODE_WGMMA.config(), W4A16Problem(16, 256, 256, 64), "compiled for other weights"),
        (
            DECODE_WGMMA.config(tile_k=128, group_size=64),
            W4A16Problem(16, 256, 256, 64),
            "tile_k = 128 for groups of 64",
        ),
        (
            DECODE_WGMMA.config(32, 4, 4),
            W4A16Problem(32, 256, 256),
            "bytes of shared memory a block; .* 232448",
        ),
        (
            DECODE_WGMMA.config(16, 1, 9, blocks_per_sm=2),
            W4A16Problem(16, 256, 256),
            "needs 118016 bytes of shared memory a block; NVIDIA H200 has 115712 with 2 a SM",
        ),
    ],
    PREFILL: [
        (
            PREFILL.config(192),
            W4A16Problem(128, 256, 256),
            "tile_m = 192 for M = 128 only adds rows",
        ),
        (
            PREFILL.config(64, 256, pair=True),
            W4A16Problem(128, 256, 256),
            r"at least 512 \(pairs .*; got 256",
        ),
        (PREFILL.config(), W4A16Problem(128, 256, 256, 64), "compiled for other weights"),
        (
            PREFILL.config(64, 256, 4, scale_sums=True, group_size=-1),
            W4A16Problem(64, 256, 256, -1),
            "scaled by groups, in stages of 128 of K; got group_size = -1, K = 256",
        ),
        (
            PREFILL.config(64, 256, 4, scale_sums=True, group_size=64),
            W4A16Problem(64, 256, 320, 64),
            "in stages of 128 of K; got group_size = 64, K = 320",
        ),
        (
            PREFILL.config(128, 128, 7, stripes=False, cluster=2),
            W4A16Problem(128, 8576, 256),
            "a cluster of 2 for every tile needs 134 of 132 SMs",
        ),
        (
            PREFILL.config(num_stages=20),
            W4A16Problem(128, 256, 256),
            "bytes of shared memory a block",
        ),
    ],
    GPTQ: [
        (GPTQ.config(32), replace(ORDERED, group_size=8), "must be 8 for group_size 8; got 128"),
        (GPTQ.config(32), IN_ACT_ORDER, "must be 1 for group_size 24 in act-order; got 128"),
        (
            GPTQ.config(32, group_rows=32),
            replace(ORDERED, M=8),
            "half of tile_m = 32 holds all of M = 8",
        ),
        (
            GPTQ.config(32, split_k=8, group_rows=32),
            ORDERED,
            "K = 416 has 7 tiles of 64; split_k is 8",
        ),
    ],
}


@pytest.mark.parametrize(("kernel", "fields", "words"), cases(CONTRADICTIONS))
def test_a_config_that_contradicts_itself_says_so(kernel, fields, words):
    with pytest.raises(ConfigError, match=words):
        kernel.config(**fields)


@pytest.mark.parametrize(("kernel", "problem", "words"), cases(PROBLEMS))
def test_what_it_cannot_run_is_refused_with_the_numbers(kernel, problem, words):
    assert re.search(words, kernel.refuses(problem))


@pytest.mark.parametrize(("kernel", "config", "problem", "words"), cases(MISFITS))
def test_what_does_not_fit_is_a_misfit_in_numbers(kernel, config, problem, words):
    assert re.search(words, kernel.misfit(config, problem, H200))
