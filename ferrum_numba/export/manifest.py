"""What an engine must know of each program to launch it: `manifest.json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ferrum_numba import __version__
from ferrum_numba.compile import Binary
from ferrum_numba.compile.toolchain import toolchain
from ferrum_numba.compile.versions import PACKAGES
from ferrum_numba.export.folder import SCHEMA
from ferrum_numba.export.operands import DOCS, LAYOUTS, describe_parameter
from ferrum_numba.export.programs import Exported
from ferrum_numba.export.shapes import shapes
from ferrum_numba.export.symbols import compiled_in
from ferrum_numba.gpu import Gpu
from ferrum_numba.launch.kernel import PORTABLE_CLUSTER_BLOCKS

Json = dict[str, Any]
# a block gets no more without being allowed to
USUAL_SMEM_BYTES = 48 << 10
GPU_FACTS = ("key", "name", "arch", "num_sms")


def manifest(gpu: Gpu, *, tuned: bool) -> Json:
    """Return the manifest of an export, without its entries."""
    facts = asdict(gpu)
    return {
        "schema": SCHEMA,
        "made_by": f"ferrum-numba {__version__}",
        "docs": DOCS,
        "gpu": {name: facts[name] for name in GPU_FACTS},
        "tuned": tuned,
        "toolchain": {package: toolchain()[package] for package in PACKAGES},
        "layouts": dict(LAYOUTS),
    }


def entry(one: Exported, binary: Binary) -> Json:
    """Return an entry, without the files that it is in."""
    launch, smem_bytes = one.launch, binary.static_smem_bytes + binary.smem_bytes
    blocks = binary.cluster[0] * binary.cluster[1] * binary.cluster[2]
    return {
        "symbol": one.symbol,
        "arch": binary.arch,
        "kernel": one.kernel.name,
        "summary": one.kernel.summary,
        "config": compiled_in(one.kernel, one.config),
        "tuned": one.tuned,
        "parameters": [
            describe_parameter(one.kernel.name, one.config, launch, parameter)
            for parameter in one.parameters
        ],
        "block": [binary.num_threads, 1, 1],
        "cluster": list(binary.cluster),
        "smem_bytes": binary.smem_bytes,
        "static_smem_bytes": binary.static_smem_bytes,
        "raise_smem_limit": smem_bytes > USUAL_SMEM_BYTES,
        "allow_large_cluster": blocks > PORTABLE_CLUSTER_BLOCKS,
        "programmatic": launch.programmatic,
        "cooperative": launch.co_resident and not launch.programmatic,
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "shapes": shapes(one.kernel, one.config),
    }
