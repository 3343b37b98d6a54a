"""w4a8_decode: tokens of both kinds through steps, stripes and clusters; what it refuses."""

from dataclasses import asdict, replace

import pytest

from ferrum_numba import check
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a8_decode.kernel import Config, W4A8Decode

H200, A100 = KNOWN["h200"], KNOWN["a100"]
KERNEL = W4A8Decode()


@pytest.mark.parametrize("x_dtype", ["fp8", "int8"])
@pytest.mark.parametrize(
    "config",
    [
        Config(8, 2, 2, 128, 1),
        Config(16, 1, 2, 64, 1),
        Config(16, 1, 3, 64, 2, 2),
        Config(32, 1, 2, 64, 1, early=False),
    ],
    ids=lambda c: f"{c.tile_m}-{c.step_k}-{c.cluster}",
)
def test_tiles_and_steps_of_every_size_equal_the_reference(config, x_dtype):
    for group_size in (128, 64):
        problem = W4A8Problem(config.tile_m + 1, 128, 512, group_size, "gptq", x_dtype=x_dtype)
        config = KERNEL.specialise(config, problem)
        gpu = replace(H200, num_sms=4 if config.cluster > 1 else 3)
        result = check.on_interpreter(KERNEL, config, problem, gpu=gpu)
        assert result.ok, result.reason


@pytest.mark.parametrize("M", [1, 8, 16, 32, 64])
def test_its_default_is_the_one_of_16_bit_tokens(M):
    problem = W4A8Problem(M, 8192, 8192)
    ours = asdict(KERNEL.default(problem, H200))
    same = asdict(Decode().default(problem.weight, H200))
    assert {name: ours[name] for name in same} == same
    assert KERNEL.misfit(KERNEL.default(problem, H200), problem, H200) is None


def test_a_scale_for_128_of_a_row_is_refused():
    sentence = "w4a8_decode needs x_group = -1, one scale a row; got 128"
    assert KERNEL.refuses(W4A8Problem(1, 128, 128, x_group=128)) == sentence
    with pytest.raises(ConfigError, match="x8 is fp8 or int8, with x_group -1; got fp8, 128"):
        Config(x_group=128)


def test_fp8_asks_for_a_gpu_that_has_it_and_int8_does_not():
    fp8, int8 = W4A8Problem(1, 128, 256), W4A8Problem(1, 128, 256, x_dtype="int8")
    config = KERNEL.specialise(KERNEL.configs(A100)[0], fp8)
    assert KERNEL.misfit(config, fp8, A100) == f"fp8 needs sm_89 or later; {A100.name} is sm_80"
    assert KERNEL.misfit(KERNEL.default(int8, A100), int8, A100) is None
