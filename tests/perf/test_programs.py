"""The programs that ship: those of the decisions, all of them, and made of today's source."""

import json
import sys
import zlib

import pytest
from host_driver import binary

from ferrum_numba import shipped
from ferrum_numba.compile import Binary, Job, cache, function_fingerprint, recipe
from ferrum_numba.contract import describe
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import GROUPED, LINEAR, MOE
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasConfig
from ferrum_numba.perf import decisions, programs
from ferrum_numba.results.decisions import Decision

GPUS = [KNOWN[key] for key in decisions.gpu_keys()]
MOST_BYTES = 10 << 20
# of a key's toolchain: none names a file
VERSIONS = {
    "python", "numba", "numba-cuda", "llvmlite", "numpy", "cuda-core", "cuda-bindings", "source",
}  # fmt: skip
ARCH = "sm_90a"


@pytest.fixture
def _shipped(monkeypatch):
    monkeypatch.delenv(shipped.ENVIRONMENT_VARIABLE)


def recipe_of(job):
    return recipe.recipe_of(job.kernel, job.config, job.arch)


@pytest.mark.usefixtures("_shipped")
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.key)
def test_every_decision_ships_as_its_source_is_today(gpu):
    folder = shipped.programs_folder(gpu.arch)
    jobs = programs.wanted(gpu)
    found = {job: recipe.find(folder, recipe_of(job)) for job in jobs}
    wrong = {f"{job.kernel.name} {job.config}": why for job, why in found.items()
             if not isinstance(why, Binary)}  # fmt: skip
    assert not wrong, f"run {programs.COMMAND}"
    around = {"repack", "gather_columns", "add_bias"}
    assert around | {kernel.name for kernel in LINEAR} <= {job.kernel.name for job in jobs}
    assert all(found.arch == gpu.arch for found in found.values())


@pytest.mark.usefixtures("_shipped")
def test_nothing_else_ships():
    jobs = {job for gpu in GPUS for job in programs.wanted(gpu)}
    recipes = {recipe.path(shipped.programs_folder(job.arch), recipe_of(job)) for job in jobs}
    binaries = {cache.path(path.parent, json.loads(path.read_text())["binary"]) for path in recipes}
    there = {path for gpu in GPUS for path in shipped.programs_folder(gpu.arch).iterdir()}
    assert there == recipes | binaries, f"run {programs.COMMAND}"
    assert set(shipped.programs()) == {gpu.arch for gpu in GPUS}
    # in the wheel, which is compressed
    assert sum(len(zlib.compress(path.read_bytes())) for path in there) < MOST_BYTES


@pytest.mark.usefixtures("_shipped")
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.key)
def test_the_function_of_each_design_has_the_fingerprint_that_ships(gpu):
    folder = shipped.programs_folder(gpu.arch)
    for job in {job.kernel.name: job for job in programs.wanted(gpu)}.values():
        name = json.loads(recipe.path(folder, recipe_of(job)).read_text())["binary"]
        stored = cache.path(folder, name).read_bytes().split(b"\n")[1]
        key = json.loads(json.loads(stored)["key"])
        assert key["toolchain"].keys() == VERSIONS
        # bytecode is another in another Python
        if key["toolchain"]["python"].split(".")[:2] == [
            str(part) for part in sys.version_info[:2]
        ]:
            function = job.kernel.build(job.config, job.arch).function
            assert key["function"] == function_fingerprint(function)


JOBS = [Job(AddBias(), AddBiasConfig(rows=rows), ARCH) for rows in (1, 2)]


@pytest.fixture
def compiled(monkeypatch):
    """Return the configs that were compiled; what is made is empty."""
    built = []

    def build_many(jobs, *, progress):
        for job in jobs:
            built.append(job.config)
            yield job, binary("add_bias", ())

    monkeypatch.setattr(programs, "build_many", build_many)
    return built


def test_only_what_is_missing_is_compiled(compiled, tmp_path):
    assert programs.write(JOBS, tmp_path) == (2, 2)
    assert programs.write(JOBS, tmp_path) == (2, 0)
    assert len(compiled) == 2
    next(tmp_path.glob("*.cubin")).write_bytes(b"damaged")
    assert programs.write(JOBS, tmp_path) == (2, 1)
    assert all(isinstance(recipe.find(tmp_path, recipe_of(job)), Binary) for job in JOBS)


def test_what_nobody_asks_for_is_removed(compiled, tmp_path):
    programs.write(JOBS, tmp_path)
    (tmp_path / "other.cubin").write_text("")
    programs.write(JOBS[:1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_configs_of_one_program_share_it(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "portable_key", lambda kernel, config, arch: "one")
    assert programs.write(JOBS, tmp_path) == (1, 1)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_program_of_another_compiler_is_compiled(compiled, tmp_path, monkeypatch):
    programs.write(JOBS, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    from ferrum_numba.compile import compiler

    other = {**compiler.versions(), "numba": "another"}
    monkeypatch.setattr(compiler, "versions", lambda: other)
    assert programs.write(JOBS, tmp_path) == (2, 2)
    after = {path.name for path in tmp_path.iterdir()}
    assert {name for name in before & after if name.endswith(".cubin")} == set()


def test_one_that_does_not_compile_ends_it(tmp_path, monkeypatch):
    def build_many(jobs, *, progress):
        yield jobs[0], BuildError("it does not compile")

    monkeypatch.setattr(programs, "build_many", build_many)
    with pytest.raises(BuildError, match="it does not compile"):
        programs.write(JOBS, tmp_path)


def test_the_same_programs_are_the_same_files(compiled, tmp_path):
    for name in "ab":
        programs.write(JOBS, tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("per_pair", [False, True])
def test_what_a_layer_of_experts_needs_goes_with_its_decision(monkeypatch, per_pair):
    N, K = (2048, 768) if per_pair else (1536, 2048)
    problem = GroupedProblem(16, 128, 8, N, K, per_pair=per_pair)
    gpu, kernel = KNOWN["h200"], GROUPED[0]
    config = kernel.default(problem, gpu)
    decided = Decision("grouped_gemm", describe(problem), kernel.name, describe(config), 1.0, "")
    monkeypatch.setattr(programs, "shipped_decisions", lambda gpu: [decided])
    jobs = programs.wanted(gpu)
    names = {job.kernel.name for job in jobs}
    assert {kernel.name for kernel in MOE} < names
    assert {"repack", "gather_pairs", "add_bias_pairs", kernel.name} < names
    assert (kernel.name, config) in {(job.kernel.name, job.config) for job in jobs}
    # of each kind of logits
    routes = {job.config.dtype for job in jobs if job.kernel.name == "route_topk"}
    assert routes == {"fp16", "bf16", "fp32"}
