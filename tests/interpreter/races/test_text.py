"""wgmma inside longer instructions: a fence or a wait that is missing in their text."""

import re

import pytest

from ferrum_numba.interpreter.races.text import fault_of
from ferrum_numba.kernels.decode_wgmma.steps import multiply_stage
from ferrum_numba.kernels.prefill.steps import StageAhead

FENCE, WAIT = "wgmma.fence.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
STAGES = [
    multiply_stage(16, "f16", 1, 0, 4, 1),
    multiply_stage(32, "bf16", 2, 2, 8, 2),
    multiply_stage(8, "f16", 0, 1, 8, 1),
    *(
        getattr(StageAhead(16, "f16", groups, groups, 8, 256, 2, 16), part)
        for groups in (1, 2, 4)
        for part in ("first", "multiply", "last")
    ),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_text_of_a_stage_is_sound(stage):
    assert fault_of(stage.template) is None


@pytest.mark.parametrize("stage", [STAGES[0], STAGES[4]], ids=lambda stage: stage.name)
def test_every_fence_is_needed(stage):
    fences = [match.start() for match in re.finditer(re.escape(FENCE), stage.template)]
    assert len(fences) > 1
    for start in fences:
        text = stage.template[:start] + stage.template[start + len(FENCE) :]
        assert "missing: wgmma.fence before it" in fault_of(text)


@pytest.mark.parametrize("stage", [STAGES[0], STAGES[5]], ids=lambda stage: stage.name)
def test_the_last_wait_is_needed(stage):
    start = stage.template.rindex(WAIT)
    for wait in ("", "wgmma.wait_group.sync.aligned 1;"):
        text = stage.template[:start] + wait + stage.template[start + len(WAIT) :]
        fault = fault_of(text) or fault_of(text + WAIT)
        assert "of products that may still run" in fault
