"""Symbols: one for each distinct program, and none for two."""

from collections import defaultdict
from dataclasses import replace

import pytest

from ferrum_numba.compile import program_fingerprint
from ferrum_numba.export.symbols import symbol
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.kernels.decode.kernel import Config as DecodeConfig
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.tools.add_bias import AddBias
from ferrum_numba.kernels.tools.gather_columns import GatherColumns
from ferrum_numba.kernels.tools.repack import Repack

GPU = KNOWN["h200"]
KERNELS = (*RAW, *PACKED, GatherColumns(), AddBias(), Repack())
# what problems dictate
KINDS = ({}, {"dtype": "bf16"}, {"has_zero_points": True}, {"group_size": -1}, {"group_rows": 1})


def space(kernel):
    """Return the kernel's configs, and a few of them for other weights."""
    configs = list(kernel.configs(GPU))
    fields = vars(configs[0])
    kinds = [kind for kind in KINDS if kind.keys() <= fields.keys()]
    return configs + [replace(config, **kind) for config in configs[:2] for kind in kinds]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_symbol_is_a_program(kernel):
    programs, symbols = defaultdict(set), defaultdict(set)
    for config in space(kernel):
        fingerprint, name = program_fingerprint(kernel, config, GPU.arch), symbol(kernel, config)
        programs[name].add(fingerprint)
        symbols[fingerprint].add(name)
    assert {len(found) for found in programs.values()} == {1}
    assert {len(found) for found in symbols.values()} == {1}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_symbol_is_an_identifier(kernel):
    assert all(symbol(kernel, config).isidentifier() for config in space(kernel))


def test_a_symbol_can_be_read():
    config = DecodeConfig(16, 1, 6, 64, 2, cluster=2, group_size=-1, has_zero_points=True)
    want = "decode_tm16_wn1_wk6_sk64_bps2_c2_early_gsall_has_zero_points_fp16"
    assert symbol(Decode(), config) == want
