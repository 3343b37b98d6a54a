"""From a config to a cubin: names, resources, architectures, errors, many at once, occupancy."""

import multiprocessing
import re
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from toy_builds import Config, Toy, clustered, crowded, unlinkable

from ferrum_numba.compile import Job, blocks_per_sm, build, build_many, build_program, link, sass
from ferrum_numba.compile.pool import _serve
from ferrum_numba.contract import Parameter, Program, pointers, sizes
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.prefill.kernel import Config as PrefillConfig
from ferrum_numba.kernels.prefill.kernel import Prefill

ARCHS = (
    "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_120", "sm_120a",
)  # fmt: skip
PARAMETERS = pointers("out") + sizes("n")


@pytest.fixture(scope="module")
def binary():
    return build(Toy(), Config(), "sm_90a", use_cache=False)


def test_the_entry_and_its_symbols_carry_the_kernels_name(binary):
    assert binary.entry == "toy"
    assert ".visible .entry toy(" in binary.ptx
    assert ".param .u64 toy_param_0" in binary.ptx
    assert b".text.toy\0" in binary.cubin
    # numba's own names are mangled, and hold a counter
    assert not re.search(r"_Z|_cudapy|NumbaEnv", binary.ptx)


def test_a_link_from_ltoir_gives_the_same_symbols_and_resources(binary):
    program = replace(Toy().build(Config(), "sm_90a"), lto=True)
    linked = build_program(program, "sm_90a", "toy")
    assert linked.entry == "toy"
    assert b".text.toy\0" in linked.cubin
    assert not re.search(rb"_Z|cudapy", linked.cubin)
    assert linked.ptx == binary.ptx
    assert linked.static_smem_bytes == binary.static_smem_bytes
    assert 4 < linked.registers < 40
    assert linked.spill_bytes == linked.stack_bytes == 0


@pytest.mark.parametrize("lto", [False, True])
def test_registers_move_between_warps_only_in_a_link_from_ltoir(lto):
    kernel, config = Prefill(), PrefillConfig(64, 128)
    program = replace(kernel.build(config, "sm_90a"), lto=lto)
    found = build_program(program, "sm_90a").sass
    if found is None:
        pytest.skip("nvdisasm is not installed")
    assert found.get("USETMAXREG", 0) == (2 if lto else 0)


def test_the_program_is_in_the_binary(binary):
    assert binary.parameters == (Parameter("out", "pointer"), Parameter("n", "uint32"))
    assert (binary.num_threads, binary.smem_bytes, binary.cluster) == (64, 4096, (1, 1, 1))
    assert ".maxntid 64" in binary.ptx
    assert ".minnctapersm 1" in binary.ptx
    assert ".maxclusterrank" not in binary.ptx


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_builds(arch):
    binary = build(Toy(), Config(), arch, use_cache=False)
    assert f".target {arch}\n" in binary.ptx
    assert binary.arch == arch
    # 32 + 64 floats, without the kilobyte that the system reserves since sm_90
    assert binary.static_smem_bytes == 96 * 4
    assert 4 < binary.registers < 40
    assert binary.spill_bytes == binary.stack_bytes == 0


def test_the_same_input_gives_the_same_binary(binary):
    again = build(Toy(), Config(), "sm_90a", use_cache=False)
    assert again.ptx == binary.ptx
    assert again.cubin == binary.cubin
    assert again.fingerprint == binary.fingerprint
    other = build(Toy(), Config(factor=4), "sm_90a", use_cache=False)
    assert other.fingerprint != binary.fingerprint
    assert other.cubin != binary.cubin


def test_spills_and_stack_are_counted():
    roomy = build_program(Program(crowded, PARAMETERS, 256), "sm_90a")
    tight = build_program(Program(crowded, PARAMETERS, 1024, min_blocks_per_sm=2), "sm_90a")
    assert roomy.spill_bytes == 0
    assert roomy.registers > 80
    assert tight.registers <= 32
    # each of the some 50 values too many is stored once and loaded once
    assert tight.spill_bytes > 2 * 4 * 40
    assert tight.stack_bytes >= 4 * 40


def test_a_program_without_a_kernel_is_named_after_its_function():
    binary = build_program(Program(clustered, PARAMETERS, 128), "sm_80")
    assert binary.entry == "clustered"
    assert binary.static_smem_bytes == 0


def test_a_cluster_is_a_launch_bound():
    program = Program(clustered, PARAMETERS, 128, cluster=(2, 2, 1))
    binary = build_program(program, "sm_90a")
    assert ".maxclusterrank 4" in binary.ptx
    assert binary.cluster == (2, 2, 1)


def test_a_cluster_needs_hopper():
    program = Program(clustered, PARAMETERS, 128, cluster=(2, 1, 1))
    with pytest.raises(BuildError, match=r"in clusters of \(2, 1, 1\) blocks, sm_89 has none"):
        build_program(program, "sm_89")


@pytest.mark.skipif(sass.nvdisasm() is None, reason="nvdisasm is not installed")
def test_the_instruction_mix_counts_opcodes(binary):
    # the two arrays, and the loop of the helper
    assert binary.sass["STS"] == 2
    assert binary.sass["LDS"] == 2
    assert binary.sass["STG"] == binary.sass["BAR"] == 1
    assert "NOP" not in binary.sass


def test_without_nvdisasm_there_is_no_instruction_mix(monkeypatch, binary):
    monkeypatch.setattr(sass, "nvdisasm", lambda: None)
    assert sass.instruction_mix(binary.cubin) is None


def test_numbas_words_are_in_the_error():
    with pytest.raises(
        BuildError, match=r"(?s)toy does not compile for sm_90a: .*attribute 'what'"
    ):
        build(Toy(), Config(fault="does not type"), "sm_90a")


def test_the_linkers_words_are_in_the_error():
    with pytest.raises(BuildError, match=r"(?s)unlinkable does not link for sm_80: .*line \d+"):
        build_program(Program(unlinkable, PARAMETERS, 32), "sm_80")


def test_nvvms_words_are_in_the_error():
    with pytest.raises(BuildError, match=r"(?s)compile for sm_90f: .*INVALID_OPTION.*compute_90f"):
        build_program(Program(clustered, PARAMETERS, 32), "sm_90f")


def test_parameters_must_be_the_functions():
    with pytest.raises(BuildError, match="1 argument types given, but function takes 2"):
        build_program(Program(clustered, pointers("out"), 32), "sm_80")


@pytest.mark.parametrize("arch", ["90a", "sm_9", "compute_90", "sm_90x"])
def test_an_architecture_that_is_none_is_refused(arch):
    with pytest.raises(BuildError, match=rf"like sm_80, sm_90a or sm_120; got '{arch}'"):
        build_program(Program(clustered, PARAMETERS, 32), arch)


def test_many_builds_outlive_the_bad_ones(binary, monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    faults = ("dies", "raises", "does not type")
    configs = [Config(fault=fault) for fault in faults] + [Config(), Config(factor=5)]
    jobs = [Job(Toy(), config, "sm_90a") for config in configs]
    seen = []
    done = {
        job.config.fault or job.config.factor: outcome
        for job, outcome in build_many(jobs, workers=2, progress=lambda *n: seen.append(n))
    }
    assert seen == [(i, 5) for i in range(1, 6)]
    assert "died with status 7" in str(done["dies"])
    assert "failed with KeyError: 'no such tile'" in str(done["raises"])
    assert "attribute 'what'" in str(done["does not type"])
    assert all(isinstance(done[fault], BuildError) for fault in faults)
    # another process, with another hash seed, makes the same of it
    assert done[3].cubin == binary.cubin
    assert done[3].ptx == binary.ptx
    assert done[5].cubin != binary.cubin
    assert multiprocessing.active_children() == []


def test_a_build_that_hangs_is_given_up():
    jobs = [Job(Toy(), Config(factor, fault="hangs"), "sm_90a") for factor in (1, 2)]
    for _, outcome in build_many(jobs, workers=2, timeout_s=1):
        assert "not built within 1 s, given up" in str(outcome)
    assert multiprocessing.active_children() == []


def test_what_cannot_be_sent_to_a_worker_is_an_error():
    class Local(Toy):
        pass

    jobs = [Job(Local(), Config(factor), "sm_80") for factor in (1, 2)]
    for _, outcome in build_many(jobs, workers=2):
        assert "cannot be sent to a worker process" in str(outcome)


@pytest.mark.parametrize("num_jobs", [0, 1, 2])
def test_one_worker_needs_no_process(monkeypatch, num_jobs):
    monkeypatch.setattr("ferrum_numba.compile.pool._start", None)
    jobs = [Job(Toy(), Config(fault="raises"), "sm_80")] * num_jobs
    outcomes = [outcome for _, outcome in build_many(jobs, workers=1)]
    assert [str(o).endswith("failed with KeyError: 'no such tile'") for o in outcomes] == (
        [True] * num_jobs
    )


def test_an_interrupt_ends_the_workers():
    def interrupt(done, total):
        raise KeyboardInterrupt

    jobs = [Job(Toy(), Config(fault=fault), "sm_90a") for fault in ("dies", "hangs")]
    with pytest.raises(KeyboardInterrupt):
        list(build_many(jobs, workers=2, progress=interrupt))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_any_executor_builds(binary, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("ferrum_numba.compile.pool._start", None)
    jobs = [Job(Toy(), config, "sm_90a") for config in (Config(fault="raises"), Config())]
    seen = []
    spawn = multiprocessing.get_context("spawn")
    pool = ThreadPoolExecutor(1) if kind == "threads" else ProcessPoolExecutor(1, spawn)
    with pool:
        found = build_many(jobs, progress=lambda *n: seen.append(n), executor=pool)
        done = {job.config.fault: outcome for job, outcome in found}
    assert "failed with KeyError: 'no such tile'" in str(done["raises"])
    assert done[""].cubin == binary.cubin
    assert seen == [(1, 2), (2, 2)]


def test_a_job_that_is_lost_with_an_executors_worker_is_an_error():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        jobs = [Job(Toy(), Config(fault="dies"), "sm_90a")]
        ((_, outcome),) = build_many(jobs, executor=pool)
    assert "was lost with its worker: BrokenProcessPool" in str(outcome)


# registers, threads, shared memory (static + dynamic), GPU -> blocks, by hand
OCCUPANCY = {
    "threads: 2048 / 256": (32, 256, 0, "h200", 8),
    "threads: 1536 / 1024": (32, 1024, 0, "rtx4090", 1),
    "blocks: 32": (16, 32, 0, "a100", 32),
    "blocks: 16": (16, 32, 0, "rtx3090", 16),
    "blocks: 24": (16, 32, 0, "rtx5090", 24),
    # 64 * 32 = 2048 a warp, 32 warps, 8 a block
    "registers: 64": (64, 256, 0, "a100", 4),
    # 65 * 32 = 2080 takes 2304 a warp: 7 warps a partition, 28 in all, 8 a block
    "registers: 65 round up": (65, 256, 0, "a100", 3),
    # 255 * 32 takes 8192 a warp: 2 warps a partition
    "registers: 255": (255, 256, 0, "h100", 1),
    "registers: too many": (255, 512, 0, "h100", 0),
    # 168 * 32 = 5376 a warp: 3 warps a partition, all 12 of the block
    "registers: 168": (168, 384, 0, "h200", 1),
    # 128 * 32 = 4096 a warp: 16 warps; 3 warps of a block take 4
    "registers: odd warps": (128, 96, 0, "h200", 4),
    # (48 + 1) KB of 228
    "smem: 48 KB": (32, 128, 48 * 1024, "h200", 4),
    "smem: all": (32, 128, 227 * 1024, "h200", 1),
    "smem: too much": (32, 128, 227 * 1024 + 1, "h200", 0),
    # 100 KB / (24 + 1) KB
    "smem: reserved": (32, 128, 24 * 1024, "l40s", 4),
    "smem: rounds up": (32, 128, 24 * 1024 + 1, "l40s", 3),
}


@pytest.mark.parametrize(
    ("registers", "threads", "smem", "gpu", "want"), OCCUPANCY.values(), ids=OCCUPANCY
)
def test_occupancy(binary, registers, threads, smem, gpu, want):
    program = replace(
        binary, registers=registers, num_threads=threads,
        static_smem_bytes=smem // 2, smem_bytes=smem - smem // 2,
    )  # fmt: skip
    assert blocks_per_sm(program, KNOWN[gpu]) == want


@pytest.mark.parametrize("lto", [False, True])
@pytest.mark.parametrize("function", [clustered, crowded])
def test_a_link_without_a_log_is_read_from_the_cubin(monkeypatch, function, lto):
    program = Program(
        function, (*pointers("out"), *sizes("n")), num_threads=1024, min_blocks_per_sm=2, lto=lto
    )
    told, one = build_program(program, "sm_90a"), link._link
    monkeypatch.setattr(link, "_link", lambda *arguments: (one(*arguments)[0], ""))
    read = build_program(program, "sm_90a")
    assert read.registers == told.registers > 0
    assert read.stack_bytes == told.stack_bytes
    assert (read.spill_bytes > 0) == (told.spill_bytes > 0) == (function is crowded)


def test_both_wordings_of_the_linker_s_log_are_read():
    long = (
        "info    : Function properties for add\n"
        "info    : 16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "info    : Used 42 registers, used 0 barriers"
    )
    short = (
        "info    : Function properties for add\n"
        "info    : used 10 registers, used 0 barriers, 24 stack, 0 bytes smem, "
        "548 bytes cmem[0], 20 bytes lmem"
    )
    assert link.read_log(long, "add", "sm_90a") == (42, 12, 16)
    assert link.read_log(short, "add", "sm_90a") == (10, 20, 24)
    with pytest.raises(BuildError, match="tells no registers"):
        link.read_log("nothing of use", "add", "sm_90a")


def test_a_worker_whose_caller_went_with_an_answer_unread_ends_quietly(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    near, far = multiprocessing.Pipe()
    far.send_bytes(b"an answer")
    near.close()
    # the system says of such a pipe that it was reset, not that it ended
    _serve(far)
