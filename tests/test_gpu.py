"""The facts of GPUs: known, recorded, and live."""

import json
import re
from dataclasses import asdict, replace

import pytest

from ferrum_numba import gpu
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN

# what the driver says of an H200
H200 = {
    "multiprocessor_count": 132,
    "l2_cache_size": 62914560,
    "max_shared_memory_per_block_optin": 232448,
    "max_shared_memory_per_multiprocessor": 233472,
    "reserved_shared_memory_per_block": 1024,
    "max_registers_per_multiprocessor": 65536,
    "max_threads_per_multiprocessor": 2048,
    "max_blocks_per_multiprocessor": 32,
    "clock_rate": 1980000,
    "memory_clock_rate": 3201000,
    "global_memory_bus_width": 6016,
    "dram_bytes": 150 * 10**9,
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_known_gpu_agrees_with_itself(known):
    assert gpu.find(known.key) is known
    assert known.source == "table"
    assert known.smem_per_sm - known.smem_per_block == known.smem_reserved == 1024
    # FLOPs a clock and SM are powers of two; clocks in datasheets are up to 8 % below the highest
    flops = known.tensor_tflops * 1e12 / (known.num_sms * known.clock_mhz * 1e6)
    ratio = min(abs(flops / 2**n - 1) for n in range(9, 14))
    assert ratio < 0.09


def test_all_the_promised_gpus_are_known():
    promised = "a10 a100 rtx3090 l40s rtx4090 h100 h200 b200 rtx5090"
    assert list(KNOWN) == promised.split()


def test_a_key_may_be_in_capitals():
    assert gpu.find("H200") is KNOWN["h200"]


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(DeviceError, match=r"no GPU is known as 'v100'.* a10, a100, .*rtx5090"):
        gpu.find("v100")


def test_a_recorded_gpu_keeps_its_measured_ceilings(tmp_path):
    measured = replace(KNOWN["h200"], dram_gbps=4300.5, tensor_tflops=766.0, uuid="GPU-1")
    path = tmp_path / "w4a16_gemm.json"
    path.write_text(json.dumps({"environment": {"gpu_facts": asdict(measured)}, "rows": []}))
    assert gpu.find(str(path)) == replace(measured, source="recorded")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"environment": {}}'])
def test_a_file_without_a_gpu_is_refused(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DeviceError, match=r"result.json holds no GPU: .* environment.gpu_facts"):
        gpu.find(str(path))


def find_with(tmp_path, facts):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"environment": {"gpu_facts": facts}}))
    return gpu.find(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_sms": "132"}, "num_sms: it must be an integer above 0, got '132'"),
        ({"num_sms": 0}, "num_sms: it must be an integer above 0, got 0"),
        ({"num_sms": 132.0}, "num_sms: it must be an integer above 0, got 132.0"),
        ({"num_sms": True}, "num_sms: it must be an integer above 0, got True"),
        ({"l2_bytes": -1}, "l2_bytes: it must be an integer above 0, got -1"),
        ({"dram_gbps": None}, "dram_gbps: it must be a number above 0, got None"),
        ({"dram_gbps": float("nan")}, "dram_gbps: it must be a number above 0, got nan"),
        ({"tensor_tflops": float("inf")}, "tensor_tflops: it must be a number above 0, got inf"),
        ({"clock_mhz": 0.0}, "clock_mhz: it must be a number above 0, got 0.0"),
        ({"arch": 90}, "arch: it must be text, got 90"),
        ({"uuid": None}, "uuid: it must be text, got None"),
        ({"source": "hearsay"}, "source: it must be one of live, table, recorded, got 'hearsay'"),
    ],
    ids=lambda value: "=".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_damaged_fact_is_named(tmp_path, change, words):
    with pytest.raises(DeviceError) as caught:
        find_with(tmp_path, asdict(KNOWN["h200"]) | change)
    path = tmp_path / "result.json"
    assert str(caught.value) == f"{path}: environment.gpu_facts has a wrong {words}"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([], "must be an object, got list"),
        ({"key": "a"}, "has no name, arch, num_sms, l2_bytes,"),
        (asdict(KNOWN["h200"]) | {"colour": 1}, "has colour, which is no fact of a GPU"),
    ],
    ids=["list", "missing", "unknown"],
)
def test_facts_of_another_form_are_refused(tmp_path, facts, words):
    with pytest.raises(DeviceError, match=rf"result\.json: environment\.gpu_facts {words}"):
        find_with(tmp_path, facts)


def test_whole_numbers_and_no_uuid_are_facts(tmp_path):
    facts = asdict(KNOWN["h200"]) | {"dram_gbps": 4800}
    del facts["uuid"]
    assert find_with(tmp_path, facts) == replace(KNOWN["h200"], source="recorded")


def test_a_live_gpu_of_the_table_takes_its_ceilings():
    live = gpu._from_facts("NVIDIA H200", "sm_90", H200, "GPU-7")
    assert live.uuid == "GPU-7"
    as_table = replace(live, source="table", uuid="", dram_bytes=KNOWN["h200"].dram_bytes)
    assert as_table == KNOWN["h200"]


def test_a_live_gpu_outside_the_table_has_ceilings_from_its_clocks():
    live = gpu._from_facts("NVIDIA H200 NVL", "sm_90", H200, "")
    assert live.key == "h200-nvl"
    # 2 * 3.201 GHz * 6016 bits; 4096 FLOPs * 132 SMs * 1.98 GHz
    assert live.dram_gbps == pytest.approx(4814, rel=1e-3)
    assert live.tensor_tflops == pytest.approx(1070.5, rel=1e-3)


@pytest.mark.parametrize(
    ("arch", "want"),
    [("sm_80", "sm_80"), ("sm_89", "sm_89"), ("sm_90", "sm_90a"), ("sm_103", "sm_103a")],
)
def test_architectures_from_hopper_on_have_their_own_instructions(arch, want):
    assert gpu._from_facts("a GPU", arch, H200, "").arch == want


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA GeForce RTX 4090 D", "rtx-4090-d"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
    ],
)
def test_a_relative_of_a_known_gpu_is_not_taken_for_it(name, key):
    assert gpu._from_facts(name, "sm_90", H200, "").key == key


@pytest.mark.parametrize(
    "missing", ["the NVIDIA driver's libcuda.so.1 is missing", "the NVIDIA driver sees no GPU"]
)
def test_without_a_gpu_the_error_says_what_is_missing(monkeypatch, missing):
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: missing)
    assert not gpu.driver_present()
    with pytest.raises(DeviceError, match=f"^no GPU to run on: {missing}$"):
        gpu.live()


def test_without_libcuda_nothing_else_is_tried(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpu.ctypes, "CDLL", absent)
    gpu._driver_gpus.cache_clear()
    try:
        assert gpu._driver_gpus() == "the NVIDIA driver's libcuda.so.1 is missing"
    finally:
        gpu._driver_gpus.cache_clear()


@pytest.mark.parametrize("index", [2, -1])
def test_an_index_beyond_the_machine_is_refused(monkeypatch, index):
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: 2)
    assert gpu.driver_present()
    with pytest.raises(DeviceError, match=f"GPU {index} was asked for, this machine has 2"):
        gpu.live(index)


@pytest.fixture
def three(monkeypatch):
    """Stand in for a machine with three GPUs; two of their UUIDs begin alike."""
    uuids = ("54b77351-1", "54b77352-2", "GPU-ace9aa25-3")
    boards = [replace(KNOWN["h200"], uuid=uuid) for uuid in uuids]
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: 3)
    monkeypatch.setattr(gpu, "live", boards.__getitem__)
    return boards


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("all", [0, 1, 2]), ("ALL", [0, 1, 2]), ("1", [1]), ("2, 0", [2, 0]),
        ("GPU-ace9", [2]), ("ace9aa25-3", [2]), ("54b77351,GPU-54b77352-2", [0, 1]),
    ],
)  # fmt: skip
def test_gpus_are_named_by_number_or_uuid(three, text, want):
    assert gpu.chosen(text) == [three[i] for i in want]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3", "GPU 3 was asked for, this machine has 3, from 0"),
        ("0,GPU-54b77351", "GPU GPU-54b77351-1 is named twice in 0,GPU-54b77351"),
        ("GPU-54b7", "2 GPUs begin with 'GPU-54b7': it has GPU-54b77351-1, GPU-54b77352-2"),
        ("first", "no GPU of this machine is 'first': it has GPU-54b77351-1"),
        ("0,", "no GPU of this machine is ''"),
    ],
)
@pytest.mark.usefixtures("three")
def test_a_gpu_that_is_not_there_is_one_sentence(text, words):
    with pytest.raises(DeviceError) as refused:
        gpu.chosen(text)
    assert words in str(refused.value)


def test_no_gpu_at_all_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")
    with pytest.raises(DeviceError, match="no GPU to run on: there is none"):
        gpu.chosen("all")


@pytest.mark.gpu
def test_the_table_agrees_with_the_driver():
    live = gpu.live()
    assert live.source == "live"
    assert live.uuid
    if live.key in KNOWN:
        known = KNOWN[live.key]
        assert live.dram_bytes == pytest.approx(known.dram_bytes, rel=0.1)
        unlike = {"source": "table", "uuid": "", "dram_bytes": known.dram_bytes}
        assert replace(live, **unlike) == known


@pytest.mark.parametrize(
    ("smem_bytes", "blocks_per_sm", "words"),
    [
        (232448, 1, None),
        (232449, 1, "needs 232449 bytes of shared memory a block; NVIDIA H200 has 232448"),
        (115712, 2, None),
        (115713, 2, "needs 115713 bytes of .*; NVIDIA H200 has 115712 with 2 a SM"),
    ],
)
def test_shared_memory_that_an_sm_lacks_is_said_in_numbers(smem_bytes, blocks_per_sm, words):
    said = KNOWN["h200"].lacks_smem(smem_bytes, blocks_per_sm)
    assert (said is None) if words is None else re.fullmatch(words, said)
