"""Every kernel of the house: against its reference, through the compiler, in its default space.

A new kernel adds no test here: it is in KERNELS, TOOLS or MOE, and its Op brings the problems.
"""

import re
from dataclasses import fields, replace

import pytest

from ferrum_numba import check
from ferrum_numba.compile import Job, build, build_many
from ferrum_numba.contract import describe
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import APART, KERNELS, MOE, TOOLS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.launch import lacking

H200 = KNOWN["h200"]
# three SMs: several blocks share a slice, and a block works on several
SMALL = replace(H200, num_sms=3)
EVERY = [*KERNELS, *TOOLS, *MOE]
LARGER = [
    {"M": M, "N": 1024, "K": 1024, **kind}
    for M in (7, 25, 200)
    for kind in ({}, {"group_size": 32, "zero_points": "gptq"})
]
ARCHS = {"sm_80": "a100", "sm_89": "rtx4090", "sm_90a": "h200", "sm_120": "rtx5090"}


def short(value):
    """Return a readable id of a problem or config: the fields that differ from the default."""
    if isinstance(value, tuple):
        return "-".join(short(v) for v in value)
    if not hasattr(value, "__dataclass_fields__"):
        return getattr(value, "name", str(value))
    defaults = {f.name: f.default for f in fields(value)}
    return ",".join(f"{k}={v}" for k, v in describe(value).items() if v != defaults[k]) or "default"


def problems():
    """Return every kernel with each problem of its Op that it does not refuse."""
    return [
        (kernel, problem)
        for kernel in EVERY
        for problem in kernel.op.tests
        if kernel.refuses(problem) is None
    ]


def candidates(kernel, gpu):
    """Return every config with each problem it can run, specialised for it."""
    return [
        (config, problem)
        for problem in kernel.op.tests
        for choice in kernel.configs(gpu)
        for config, problem in fits(kernel, choice, [problem], gpu)
    ]


def cover(kernel):
    """Return few configs in which every field takes each of its values, each with a problem."""
    seen, chosen = set(), []
    for config, problem in candidates(kernel, SMALL):
        if set(describe(config).items()) - seen:
            seen |= set(describe(config).items())
            chosen.append((kernel, config, problem))
    return chosen


def sample(kernel, gpu):
    """Return every choice of the space twice, with problems of all kinds in turn.

    The last problems that a choice can run come first: they are the larger and the stranger. Where
    the Op's tests are too small for a choice, it gets larger ones.
    """
    pairs = []
    for i, choice in enumerate(kernel.configs(gpu)):
        fitting = fits(kernel, choice, kernel.op.tests, gpu)
        if not fitting and kernel in KERNELS:
            larger = [replace(kernel.op.tests[0], **sizes) for sizes in LARGER]
            fitting = fits(kernel, choice, larger, gpu)
        pairs += [fitting[-1 - (2 * i + turn) % len(fitting)] for turn in range(2)]
    return pairs


def fits(kernel, choice, problems, gpu):
    """Return a choice specialised for each of the problems that it can run, and the problem."""
    return [
        (config, problem)
        for problem in problems
        if kernel.refuses(problem) is None
        for config in (kernel.specialise(choice, problem),)
        if kernel.misfit(config, problem, gpu) is None
    ]


COVER = [case for kernel in EVERY for case in cover(kernel)]


def skip_without_cublas(kernel):
    reason = lacking(kernel)
    if reason is not None:
        pytest.skip(reason)


def assert_ok(checked):
    assert checked.ok, checked.reason


@pytest.mark.parametrize("case", problems(), ids=short)
def test_default_config_equals_reference_on_interpreter(case):
    kernel, problem = case
    config = kernel.default(problem, SMALL)
    assert_ok(check.on_interpreter(kernel, config, problem, gpu=SMALL))


@pytest.mark.parametrize("case", COVER, ids=short)
def test_every_value_of_the_space_equals_reference_on_interpreter(case):
    kernel, config, problem = case
    assert_ok(check.on_interpreter(kernel, config, problem, gpu=SMALL))


@pytest.mark.gpu
@pytest.mark.parametrize("case", problems(), ids=short)
def test_default_config_equals_reference_on_gpu(case, device):
    kernel, problem = case
    skip_without_cublas(kernel)
    assert_ok(check.on_gpu(kernel, kernel.default(problem, device.gpu), problem, device))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kernel", EVERY, ids=short)
def test_whole_space_equals_reference_on_gpu(kernel, device):
    skip_without_cublas(kernel)
    pairs = sample(kernel, device.gpu)
    jobs = [Job(kernel, config, device.gpu.arch) for config in dict.fromkeys(c for c, _ in pairs)]
    binaries = {job.config: binary for job, binary in build_many(jobs)}
    failures = []
    for config, problem in pairs:
        binary = binaries[config]
        assert not isinstance(binary, Exception), binary
        result = check.on_gpu(kernel, config, problem, device, binary=binary)
        if not result.ok:
            failures.append(f"{config} {problem}: {result.reason}")
    assert not failures, "\n".join(failures)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=short)
def test_a_hundred_runs_give_equal_bits(kernel, device):
    skip_without_cublas(kernel)
    problem = replace(model_sized(kernel.op, {"M": 17}), N=512, K=2048)
    config = kernel.default(problem, device.gpu)
    assert_ok(check.on_gpu(kernel, config, problem, device, repeats=100))


# what has most registers, and what has most to dequantise
KINDS = (
    {"M": 1},
    {"M": 256},
    {"M": 1, "zero_points": "gptq", "dtype": "bf16"},
    {"M": 64, "act_order": True},
)


def model_sized(op, kind):
    """Return a problem of a kind of weight; of experts there are few rows each."""
    sizes = {"N": 4096, "K": 4096}
    if "tokens" in describe(op.tests[0]):
        kind = {"tokens" if name == "M" else name: value for name, value in kind.items()}
        sizes |= {"num_experts": 8, "top_k": 2}
    return replace(op.tests[0], **sizes, **kind)


def has(op, kind):
    """Return whether problems of an Op come in a kind: not all weights are in act-order."""
    return kind.keys() - {"M"} <= describe(op.tests[0]).keys()


KINDS_OF_LAYERS = [
    (kernel, problem)
    for kernel in KERNELS
    for problem in (model_sized(kernel.op, kind) for kind in KINDS if has(kernel.op, kind))
    if kernel.refuses(problem) is None
]


def quick(case, arch):
    """Return whether to compile it in every run: all pairs would take minutes.

    The first kind on every architecture; the others on Hopper, whose kernels for many rows have
    tests of their own, and what runs many rows elsewhere.
    """
    kernel, problem = case
    if short(problem) == "M=1,N=4096,K=4096":
        return True
    if kernel in APART:
        return False
    rows = describe(problem).get("M") or problem.tokens
    return arch == "sm_90a" if rows < 256 else kernel.name == "marlin"


@pytest.mark.parametrize(
    ("case", "arch"),
    [
        pytest.param(case, arch, marks=[] if quick(case, arch) else pytest.mark.slow)
        for case in KINDS_OF_LAYERS
        for arch in ARCHS
    ],
    ids=short,
)
def test_default_config_compiles_without_spills(case, arch):
    kernel, problem = case
    if not kernel.runs_on(KNOWN[ARCHS[arch]]):
        pytest.skip(f"{kernel.name} has no config for {arch}")
    config = kernel.default(problem, KNOWN[ARCHS[arch]])
    if kernel.misfit(config, problem, KNOWN[ARCHS[arch]]) is not None:
        pytest.skip(f"{arch} has no {problem.x_dtype}")
    binary = build(kernel, config, arch)
    assert (binary.spill_bytes, binary.remarks) == (0, ())
    assert binary.stack_bytes == 0
    # a double, or an array indexed at run time, is a slip of typing
    assert ".f64" not in binary.ptx
    assert ".local" not in binary.ptx
    assert kernel.needs_cublas or re.search(r"\b(mma\.sync|wgmma\.mma_async)\b", binary.ptx)
    assert binary.entry == kernel.name


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("kernel", MOE, ids=short)
def test_the_largest_kinds_around_a_grouped_gemm_compile_without_spills(kernel, arch):
    gpu = KNOWN[ARCHS[arch]]
    configs = dict.fromkeys(kernel.default(problem, gpu) for problem in kernel.op.tests[-3:])
    # one kind says what another architecture lacks
    for config in configs if arch == "sm_90a" else [*configs][-1:]:
        binary = build(kernel, config, arch)
        assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())
        assert ".f64" not in binary.ptx
        assert ".local" not in binary.ptx
        assert binary.entry == kernel.name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", TOOLS, ids=short)
def test_every_kind_of_tool_compiles_without_spills(kernel, arch):
    gpu = KNOWN[ARCHS[arch]]
    defaults = [(kernel.default(problem, gpu), problem) for problem in kernel.op.tests]
    # fp8 is not known to all architectures
    for config in {c for c, problem in defaults if kernel.misfit(c, problem, gpu) is None}:
        binary = build(kernel, config, arch)
        assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())
        assert ".f64" not in binary.ptx
        assert ".local" not in binary.ptx
        assert "st.global.v4.u32" in binary.ptx
        assert binary.entry == kernel.name


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", [*EVERY, *CEILINGS], ids=short)
def test_whole_space_compiles(kernel, arch):
    configs = dict.fromkeys(config for config, _ in sample(kernel, KNOWN[ARCHS[arch]]))
    jobs = [Job(kernel, config, arch) for config in configs]
    failures = [str(result) for _, result in build_many(jobs) if isinstance(result, Exception)]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("kernel", EVERY, ids=short)
def test_an_op_s_first_config_runs_where_nothing_was_tuned(kernel):
    for problem in kernel.op.tests:
        if kernel.refuses(problem) is None:
            assert kernel.misfit(kernel.default(problem, H200), problem, H200) is None
