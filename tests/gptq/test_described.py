"""Configs that are written: what they say of a name is what was meant, and nothing of others."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_numba.gptq import described
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.described import Kind, patterns, usual_size

NAMES = st.lists(
    st.sampled_from([f"m.{i}.{p}" for i in (0, 1, 11) for p in ("gate", "gate_proj", "a+b")]),
    unique=True,
)


@given(names=NAMES, others=NAMES)
def test_patterns_match_these_and_no_other(names, others):
    others = set(others) - set(names)
    found = [re.compile(f"{pattern}$") for pattern in patterns(names, others)]
    assert all(any(pattern.match(name) for pattern in found) for name in names)
    assert not any(pattern.match(name) for pattern in found for name in others)


def test_names_that_differ_in_numbers_share_a_pattern():
    assert patterns(["x.0.gate", "x.1.gate"], ["x.0.gate_proj"]) == [r"x\.\d+\.gate"]
    assert patterns(["x.0.gate", "x.1.gate"], ["x.2.gate"]) == [r"x\.0\.gate", r"x\.1\.gate"]


@pytest.mark.parametrize(
    ("kinds", "size"),
    [
        ([(64, 64)], -1),
        ([(64, 32), (128, 32)], 32),
        # one group of 64 rows is what 128 makes of it
        ([(64, 64), (256, 128), (512, 128)], 128),
        ([(64, 64), (256, 256), (512, 512), (512, 128)], -1),
        ([(64, 32), (64, 32), (64, 64)], 32),
    ],
)
def test_the_usual_group_size(kinds, size):
    assert usual_size({str(i): Kind(*kind) for i, kind in enumerate(kinds)}) == size


@given(st.dictionaries(
    st.sampled_from([f"layers.{i}.{p}" for i in range(3) for p in ("q", "k", "head")]),
    st.sampled_from([Kind(64, 64), Kind(64, 32), Kind(128, 32), Kind(128, 128), Kind(256, 128)]),
    min_size=1,
), NAMES)  # fmt: skip
def test_what_is_read_of_a_config_is_what_was_said(layers, kept):
    for said in (
        described.gptq(layers, kept, "gptq_v2", lm_head=False),
        described.gptq(layers, kept, "marlin", lm_head=False),
        described.compressed_tensors(layers, kept),
    ):
        config = GptqConfig.parse(said)
        for name, kind in layers.items():
            assert kind.fits(config.for_layer(name).group_size)
            assert config.for_layer(name).sym
        assert [config.for_layer(name) for name in kept] == [None] * len(kept)
