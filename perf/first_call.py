"""How long the first call of a tuned problem takes, in a fresh process with an empty cache.

    python -m ferrum_numba.perf.first_call

prints a line for each of some problems: the time from the import to the layer, that of the first
call and of the second, host and GPU together, and whether numba was imported; 1 where it was, or
where a first call took longer than it may.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ferrum_numba import gpu
from ferrum_numba.errors import FerrumError

COMMAND = "python -m ferrum_numba.perf.first_call"
# (M, N, K) of group size 128 with a decision on the H200, for different designs
PROBLEMS = ((1, 4096, 4096), (16, 8192, 8192), (256, 4096, 4096), (4096, 8192, 8192))
LIMIT_MS = 50.0
LAYER = "layer"


def measure(problem: Sequence[int]) -> dict[str, Any]:
    """Return the times of one problem, taken in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ferrum-numba-") as folder:
        command = [sys.executable, "-m", "ferrum_numba.perf.first_call", LAYER, *map(str, problem)]
        environment = os.environ | {"FERRUM_NUMBA_CACHE_DIR": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        compiled = len(os.listdir(folder))
    if done.returncode:
        raise FerrumError(done.stderr.strip().rpartition("\n")[2])
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "compiled": compiled}


def _time_layer(M: int, N: int, K: int) -> dict[str, Any]:
    """Return the times of one problem, taken in this process."""
    began = time.perf_counter()
    import numpy as np

    from ferrum_numba import GptqTensors, MarlinLinear
    from ferrum_numba.launch import Buffer

    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (K // 8, N), np.uint32).view(np.int32)
    scales = rng.uniform(0.005, 0.015, (K // 128, N)).astype(np.float16)
    layer = GptqTensors.make(LAYER, words, scales, None, None, None, group_size=128, sym=True)
    linear = MarlinLinear.from_gptq(layer)
    assert linear.store.runtime is not None, "it is on a GPU"
    device = linear.store.runtime.device
    marks = [began, time.perf_counter()]
    with device.activated():
        sizes = ((M, K), (M, N))
        buffers = [Buffer.empty(device, 2 * rows * columns) for rows, columns in sizes]
        x, out = (_Array(b.pointer, shape) for b, shape in zip(buffers, sizes, strict=True))
        for _ in range(2):
            linear.forward(x, out, 0)
            device.synchronize()
            marks.append(time.perf_counter())
    spans = [1e3 * (after - before) for before, after in pairwise(marks)]
    names = ("layer_ms", "first_ms", "second_ms")
    return {**dict(zip(names, spans, strict=True)), "numba": "numba" in sys.modules}


class _Array:
    """fp16 numbers on the GPU, as a layer takes them; which, does not matter here."""

    def __init__(self, address: int, shape: tuple[int, int]) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": shape, "typestr": "<f2", "strides": None,
            "version": 3,
        }  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a first call is late or not without numba."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="machine-readable, on stdout")
    args = parser.parse_args(words)
    gpu.live()
    rows = [{"M": p[0], "N": p[1], "K": p[2], **measure(p)} for p in PROBLEMS]
    if args.json:
        print(json.dumps(rows, indent=1))
    for row in () if args.json else rows:
        print(
            f"M={row['M']} N={row['N']} K={row['K']}: layer {row['layer_ms']:.0f} ms, first call "
            f"{row['first_ms']:.1f} ms, second {row['second_ms']:.2f} ms, {row['compiled']} files "
            f"in the cache, {'with' if row['numba'] else 'without'} numba"
        )
    return int(any(row["numba"] or row["first_ms"] > LIMIT_MS for row in rows))


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == [LAYER]:
            print(json.dumps(_time_layer(*map(int, sys.argv[2:]))))
        else:
            sys.exit(main())
    except FerrumError as error:
        print(f"first_call: {error}", file=sys.stderr)
        sys.exit(2)
