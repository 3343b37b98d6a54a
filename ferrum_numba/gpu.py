"""A GPU's facts: of the one at hand, from the table of known ones, or from a recorded result.

Importing this module touches no driver and no CUDA package.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ferrum_numba import door
from ferrum_numba.errors import DeviceError

# what CUDA launches at most on any GPU here: threads a block, blocks along x, y and z
MOST_THREADS = 1024
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)


def refuses_launch(grid: Sequence[int], num_threads: int) -> str | None:
    """Return why CUDA refuses to launch so many blocks of so many threads, or None."""
    if not 0 < num_threads <= MOST_THREADS:
        return f"{num_threads} threads a block are asked for; 1 to {MOST_THREADS} can be launched"
    for axis, blocks, most in zip("xyz", grid, MOST_BLOCKS, strict=True):
        if not 0 < blocks <= most:
            return f"the grid has {blocks} blocks along {axis}; 1 to {most} can be launched"
    return None


@dataclass(frozen=True)
class Gpu:
    """What a GPU has, and the two ceilings of its roofline.

    key, name:          "h200", "NVIDIA H200" (as the driver says it)
    arch:               what its kernels are compiled for, "sm_90a"
    smem_per_block:     largest shared memory of a block, with opt-in
    smem_reserved:      what the system takes besides, a block
    dram_gbps:          10^9 bytes/s; datasheet, measured if `source` is "recorded"
    tensor_tflops:      dense fp16 with fp32 accumulation; datasheet or measured likewise
    clock_mhz:          highest SM clock
    """

    key: str
    name: str
    arch: str
    num_sms: int
    l2_bytes: int
    dram_bytes: int
    smem_per_block: int
    smem_per_sm: int
    smem_reserved: int
    registers_per_sm: int
    max_threads_per_sm: int
    max_blocks_per_sm: int
    dram_gbps: float
    tensor_tflops: float
    clock_mhz: float
    source: Literal["live", "table", "recorded"]
    uuid: str = ""

    def lacks_smem(self, smem_bytes: int, blocks_per_sm: int = 1) -> str | None:
        """Return why an SM cannot hold so many blocks of so much shared memory, or None."""
        most = min(self.smem_per_block, self.smem_per_sm // blocks_per_sm - self.smem_reserved)
        if smem_bytes <= most:
            return None
        with_others = f" with {blocks_per_sm} a SM" if blocks_per_sm > 1 else ""
        needs = f"needs {smem_bytes} bytes of shared memory a block"
        return f"{needs}; {self.name} has {most}{with_others}"


# compute capability -> shared memory of a block and of an SM in KB, threads and blocks of an SM.
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". All have 64 K
# registers an SM and 1 KB of shared memory reserved a block.
LIMITS = {
    "sm_80": (163, 164, 2048, 32),
    "sm_86": (99, 100, 1536, 16),
    "sm_89": (99, 100, 1536, 24),
    "sm_90a": (227, 228, 2048, 32),
    "sm_100a": (227, 228, 2048, 32),
    "sm_120a": (99, 100, 1536, 24),
}

MIB, GIB, GB = 2**20, 2**30, 10**9

# key, name after `NVIDIA`, arch, SMs, L2 bytes, DRAM bytes, DRAM GB/s, tensor TFLOP/s, boost MHz
# tensor: dense (half of what datasheets print with sparsity), fp16 inputs, fp32 accumulation; on
# H100 and H200 NVIDIA computes it at 1830 MHz, on B200 at about 1860, below the highest clock.
# a10, l40s:               datasheets; L2 and clock: GA102, AD102 architecture whitepapers
# a100:                    A100 80 GB SXM datasheet, GA100 whitepaper (L2, boost)
# rtx3090/4090/5090:       GA102, Ada and Blackwell RTX whitepapers, appendix tables
# h100, h200:              SXM datasheets, GH100 whitepaper; clock, H200's L2: as drivers report
# b200:                    DGX B200 datasheet divided by 8; SMs, L2, clock: as drivers report
_TABLE = (
    ("a10", "A10", "sm_86", 72, 6 * MIB, 24 * GIB, 600.0, 125.0, 1695.0),
    ("a100", "A100-SXM4-80GB", "sm_80", 108, 40 * MIB, 80 * GIB, 2039.0, 312.0, 1410.0),
    ("rtx3090", "GeForce RTX 3090", "sm_86", 82, 6 * MIB, 24 * GIB, 936.0, 71.0, 1695.0),
    ("l40s", "L40S", "sm_89", 142, 96 * MIB, 48 * GIB, 864.0, 362.0, 2520.0),
    ("rtx4090", "GeForce RTX 4090", "sm_89", 128, 72 * MIB, 24 * GIB, 1008.0, 165.2, 2520.0),
    ("h100", "H100 80GB HBM3", "sm_90a", 132, 50 * MIB, 80 * GIB, 3350.0, 989.4, 1980.0),
    ("h200", "H200", "sm_90a", 132, 60 * MIB, 141 * GB, 4800.0, 989.4, 1980.0),
    ("b200", "B200", "sm_100a", 148, 126 * MIB, 180 * GB, 8000.0, 2250.0, 1965.0),
    ("rtx5090", "GeForce RTX 5090", "sm_120a", 170, 96 * MIB, 32 * GIB, 1792.0, 209.5, 2407.0),
)

# dense fp16 FLOPs a clock and SM, of the fastest product of each architecture: a ceiling for GPUs
# that are not in the table must not be below what they can do
_TENSOR_FLOPS = {"sm_80": 2048, "sm_86": 1024, "sm_89": 1024, "sm_90": 4096, "sm_120": 1024}
_TENSOR_FLOPS_LATER = 8192


def _known(row: tuple[Any, ...]) -> Gpu:
    key, name, arch, num_sms, l2_bytes, dram_bytes, dram_gbps, tensor_tflops, clock_mhz = row
    block_kb, sm_kb, threads, blocks = LIMITS[arch]
    return Gpu(
        key, f"NVIDIA {name}", arch, num_sms, l2_bytes, dram_bytes,
        smem_per_block=block_kb * 1024, smem_per_sm=sm_kb * 1024, smem_reserved=1024,
        registers_per_sm=65536, max_threads_per_sm=threads, max_blocks_per_sm=blocks,
        dram_gbps=dram_gbps, tensor_tflops=tensor_tflops, clock_mhz=clock_mhz, source="table",
    )  # fmt: skip


KNOWN: dict[str, Gpu] = {row[0]: _known(row) for row in _TABLE}


def find(name_or_path: str) -> Gpu:
    """Return a known GPU by its key, or the one a result file was recorded on.

    Raises:
        DeviceError: neither a known key nor a file with a GPU's facts
    """
    known = KNOWN.get(name_or_path.lower())
    if known is not None:
        return known
    path = Path(name_or_path)
    if path.is_file():
        return _recorded(path)
    raise DeviceError(
        f"no GPU is known as {name_or_path!r}: give one of {', '.join(KNOWN)}, "
        "or the path of a recorded result file"
    )


def _recorded(path: Path) -> Gpu:
    try:
        facts = door.read_json(path)["environment"]["gpu_facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeviceError(
            f"{path} holds no GPU: a recorded result file has environment.gpu_facts ({error})"
        ) from error
    wrong = facts_error(facts)
    if wrong:
        raise DeviceError(f"{path}: environment.gpu_facts {wrong}")
    return Gpu(**{**facts, "source": "recorded"})


def facts_error(facts: object) -> str | None:
    """Return what keeps facts, as a file has them, from being a `Gpu`; None where they are one."""
    if not isinstance(facts, dict):
        return f"must be an object, got {type(facts).__name__}"
    kinds = get_type_hints(Gpu)
    missing = [f.name for f in fields(Gpu) if f.default is MISSING and f.name not in facts]
    if missing:
        return f"has no {', '.join(missing)}"
    for name, value in facts.items():
        if name not in kinds:
            return f"has {name}, which is no fact of a GPU"
        wanted = _unmet(kinds[name], value)
        if wanted:
            return f"has a wrong {name}: it must be {wanted}, got {value!r}"
    if not re.fullmatch(r"sm_\d+[af]?", facts["arch"]):
        return f"has a wrong arch: it must be one such as sm_90a, got {facts['arch']!r}"
    return None


def _unmet(kind: Any, value: object) -> str | None:
    """Return what a fact of this kind must be, where the value is not."""
    if kind is str:
        return None if isinstance(value, str) else "text"
    if kind not in (int, float):
        return None if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if (
        isinstance(value, int if kind is int else (int, float))
        and not isinstance(value, bool)
        and 0 < value < math.inf
    ):
        return None
    return f"{'an integer' if kind is int else 'a number'} above 0"


def is_hopper_or_later(arch: str) -> bool:
    """Return whether an architecture has clusters and programmatic dependent launches."""
    return int(arch.removeprefix("sm_").rstrip("af")) >= 90


def has_fp8(arch: str) -> bool:
    """Return whether an architecture converts to fp8."""
    return int(arch.removeprefix("sm_").rstrip("af")) >= 89


def driver_present() -> bool:
    """Return whether there is a CUDA driver and it sees a GPU; safe where there is neither."""
    return not isinstance(_driver_gpus(), str)


@cache
def _driver_gpus() -> int | str:
    """Return how many GPUs the driver sees, or what is missing.

    Asked through ctypes: with no libcuda, a cuda.core call raises once and the next can hang.
    """
    try:
        libcuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver's libcuda.so.1 is missing"
    code = libcuda.cuInit(0)
    count = ctypes.c_int(0)
    if code == 0:
        code = libcuda.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return f"the NVIDIA driver is installed but does not start (CUDA error {code})"
    return count.value or "the NVIDIA driver sees no GPU"


@cache
def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports, such as (13, 0); None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def live(index: int = 0) -> Gpu:
    """Return the facts of a GPU of this machine, as the driver tells them.

    Its ceilings are those of the table; of a GPU not in the table, they follow from its clocks.

    Raises:
        DeviceError: there is no driver, no GPU, or none of this index
    """
    count = _driver_gpus()
    if isinstance(count, str):
        raise DeviceError(f"no GPU to run on: {count}")
    if not 0 <= index < count:
        raise DeviceError(f"GPU {index} was asked for, this machine has {count}, counted from 0")
    from cuda.bindings import driver
    from cuda.core import Device

    device = Device(index)
    _, dram_bytes = driver.cuDeviceTotalMem(device.device_id)
    major, minor = device.compute_capability
    facts = {name: int(getattr(device.properties, name)) for name in _PROPERTIES}
    facts["dram_bytes"] = int(dram_bytes)
    return _from_facts(device.name, f"sm_{major}{minor}", facts, str(device.uuid))


def chosen(text: str) -> list[Gpu]:
    """Return the GPUs of this machine that a text names: `all`, or numbers and UUIDs with commas.

    A UUID may be cut short, as in `nvidia-smi`'s `GPU-54b77351`, while only one begins so.

    Raises:
        DeviceError: there is no driver, or no such GPU, or it is named twice
    """
    count = _driver_gpus()
    there = [live(index) for index in range(count if isinstance(count, int) else 1)]
    if text.strip().lower() == "all":
        return there
    found = [_named(name.strip(), there) for name in text.split(",")]
    uuids = [gpu.uuid for gpu in found]
    twice = next((uuid for uuid in uuids if uuids.count(uuid) > 1), None)
    if twice is not None:
        raise DeviceError(f"GPU {full_uuid(twice)} is named twice in {text}")
    return found


def _named(name: str, there: Sequence[Gpu]) -> Gpu:
    """Return the GPU of a number or of the beginning of a UUID."""
    if name.isdecimal() and len(name) < 4:
        if int(name) < len(there):
            return there[int(name)]
        raise DeviceError(f"GPU {name} was asked for, this machine has {len(there)}, from 0")
    alike = [gpu for gpu in there if name and full_uuid(gpu.uuid).startswith(full_uuid(name))]
    if len(alike) == 1:
        return alike[0]
    known = ", ".join(full_uuid(gpu.uuid) for gpu in there)
    many = f"{len(alike)} GPUs begin with" if alike else "no GPU of this machine is"
    raise DeviceError(f"{many} {name!r}: it has {known}")


def full_uuid(uuid: str) -> str:
    """Return a UUID as NVML and CUDA_VISIBLE_DEVICES want it; the driver's comes without GPU-."""
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


# as cuda.core and the driver name them
_PROPERTIES = (
    "multiprocessor_count",
    "l2_cache_size",
    "max_shared_memory_per_block_optin",
    "max_shared_memory_per_multiprocessor",
    "reserved_shared_memory_per_block",
    "max_registers_per_multiprocessor",
    "max_threads_per_multiprocessor",
    "max_blocks_per_multiprocessor",
    "clock_rate",
    "memory_clock_rate",
    "global_memory_bus_width",
)


def _from_facts(name: str, arch: str, facts: Mapping[str, int], uuid: str) -> Gpu:
    """Return a GPU from its properties; clocks in kHz, the bus width in bits."""
    known = next((gpu for gpu in KNOWN.values() if gpu.name == name), None)
    return Gpu(
        key=known.key if known else slug(name),
        name=name,
        # some instructions (wgmma) are in the `a` variant of an architecture alone
        arch=f"{arch}a" if int(arch.removeprefix("sm_")) >= 90 else arch,
        num_sms=facts["multiprocessor_count"],
        l2_bytes=facts["l2_cache_size"],
        dram_bytes=facts["dram_bytes"],
        smem_per_block=facts["max_shared_memory_per_block_optin"],
        smem_per_sm=facts["max_shared_memory_per_multiprocessor"],
        smem_reserved=facts["reserved_shared_memory_per_block"],
        registers_per_sm=facts["max_registers_per_multiprocessor"],
        max_threads_per_sm=facts["max_threads_per_multiprocessor"],
        max_blocks_per_sm=facts["max_blocks_per_multiprocessor"],
        dram_gbps=known.dram_gbps if known else _dram_gbps(facts),
        tensor_tflops=known.tensor_tflops if known else _tensor_tflops(arch, facts),
        clock_mhz=facts["clock_rate"] / 1e3,
        source="live",
        uuid=uuid,
    )


def _dram_gbps(facts: Mapping[str, int]) -> float:
    # both edges of the clock carry data
    return 2 * facts["memory_clock_rate"] * 1e3 * facts["global_memory_bus_width"] / 8 / 1e9


def _tensor_tflops(arch: str, facts: Mapping[str, int]) -> float:
    flops = _TENSOR_FLOPS.get(arch, _TENSOR_FLOPS_LATER)
    return flops * facts["multiprocessor_count"] * facts["clock_rate"] * 1e3 / 1e12


def slug(name: str) -> str:
    """Return a short key for a GPU: `NVIDIA H100 PCIe` is `h100-pcie`."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce"))
