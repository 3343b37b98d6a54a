"""How fast a checkpoint of Llama-3-70B's shape is loaded and packed on the host, in what memory.

    python -m ferrum_numba.perf.load_checkpoint [--blocks 4] [--folder /dev/shm] [--out FILE]

writes some of its blocks, random words in shards, in a folder of RAM; then loads every layer into
the store of the CPU, one after the other, and drops it. Once the projections as they are stored,
once fused. Printed: GB of packed weights a second, of the wall clock and of CPU time; and the most
memory that was held besides the mapped files, by the largest layer.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ferrum_numba.errors import FerrumError
from ferrum_numba.gptq import described
from ferrum_numba.gptq.checkpoint import FUSED, GptqCheckpoint
from ferrum_numba.gptq.writing import TensorWriter, write_index, write_json
from ferrum_numba.linear.stores import MarlinStore
from ferrum_numba.perf.host_rows import save

COMMAND = "python -m ferrum_numba.perf.load_checkpoint"
# of a block of Llama-3-70B: rows and columns by the last parts of a layer's name
LAYERS = {
    "self_attn.q_proj": (8192, 8192),
    "self_attn.k_proj": (8192, 1024),
    "self_attn.v_proj": (8192, 1024),
    "self_attn.o_proj": (8192, 8192),
    "mlp.gate_proj": (8192, 28672),
    "mlp.up_proj": (8192, 28672),
    "mlp.down_proj": (28672, 8192),
}
GROUP_SIZE = 128
# zero points of 8 in GPTQ v1
ZEROS = np.uint32(0x77777777).astype(np.int32)


@dataclass(frozen=True)
class Loaded:
    """What loading took.

    layers:      "stored" one by one, or "fused" where projections can be
    weights_gb:  packed weights
    wall_gb_s:   of the fastest round
    cpu_gb_s:    weights by a second of CPU time, the least of all rounds, times the processors
    peak_ratio:  the most memory held, by the bytes of the largest layer; without the mapped files
    """

    layers: str
    blocks: int
    threads: int
    weights_gb: float
    wall_gb_s: float
    cpu_gb_s: float
    largest_mb: float
    peak_mb: float
    peak_ratio: float


def write(folder: Path, blocks: int, sizes: dict[str, tuple[int, int]] = LAYERS) -> None:
    """Write so many blocks, a shard each."""
    rng = np.random.default_rng(0)
    kinds: dict[str, described.Kind] = {}
    weight_map: dict[str, str] = {}
    for block in range(blocks):
        file = f"model-{block + 1:05}-of-{blocks:05}.safetensors"
        names = {f"model.layers.{block}.{name}": size for name, size in sizes.items()}
        parts = [f"{n}.{part}" for n in names for part in ("qweight", "scales", "qzeros", "g_idx")]
        with TensorWriter(folder / file, parts) as out:
            for name, (K, N) in names.items():
                G = K // GROUP_SIZE
                words = np.frombuffer(rng.bytes(K * N // 2), np.int32).reshape(K // 8, N)
                out.add(f"{name}.qweight", words)
                out.add(f"{name}.scales", rng.uniform(0.005, 0.015, (G, N)).astype(np.float16))
                out.add(f"{name}.qzeros", np.full((G, N // 8), ZEROS))
                out.add(f"{name}.g_idx", np.arange(K, dtype=np.int32) // GROUP_SIZE)
                kinds[name] = described.Kind(K, GROUP_SIZE)
        weight_map |= dict.fromkeys(parts, file)
    write_index(folder, weight_map)
    write_json(folder / "quantize_config.json", described.gptq(kinds, [], "gptq", lm_head=False))


def names_of(checkpoint: GptqCheckpoint, *, fused: bool) -> list[str]:
    """Return the layers to load: as they are stored, or their projections fused."""
    if not fused:
        return checkpoint.names
    whole = {part: name for name, parts in FUSED.items() for part in parts}
    found: dict[str, None] = {}
    for name in checkpoint.names:
        prefix, _, last = name.rpartition(".")
        found[f"{prefix}.{whole.get(last, last)}"] = None
    return list(found)


def load(checkpoint: GptqCheckpoint, names: Iterable[str]) -> Iterator[int]:
    """Load layers into the store of the CPU; yield the bytes of each, and drop it."""
    for name in names:
        store = MarlinStore.from_gptq(checkpoint.linear(name), device="cpu")
        yield store.operands.size_bytes
        del store


def measure(folder: Path, blocks: int, rounds: int, *, fused: bool) -> Loaded:
    """Load a checkpoint some times, and once more to see what memory it takes."""
    with GptqCheckpoint.open(folder) as checkpoint:
        names = names_of(checkpoint, fused=fused)
        sizes = list(load(checkpoint, names))
        wall, cpu = [], []
        for _ in range(rounds):
            began, spent = time.perf_counter(), time.process_time()
            sizes = list(load(checkpoint, names))
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - spent)
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        list(load(checkpoint, names))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    threads, total = len(os.sched_getaffinity(0)), sum(sizes)
    return Loaded(
        layers="fused" if fused else "stored",
        blocks=blocks,
        threads=threads,
        weights_gb=total / 1e9,
        wall_gb_s=total / min(wall) / 1e9,
        cpu_gb_s=threads * total / min(cpu) / 1e9,
        largest_mb=max(sizes) / 1e6,
        peak_mb=(peak - before) / 1e6,
        peak_ratio=(peak - before) / max(sizes),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=4, help="of the model, 430 MB each")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="in RAM")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the figures")
    args = parser.parse_args(words)
    if min(args.blocks, args.rounds) < 1:
        parser.error("--blocks and --rounds must be at least 1")
    with tempfile.TemporaryDirectory(prefix="ferrum-numba-", dir=args.folder) as name:
        write(Path(name), args.blocks)
        rows = []
        for fused in (False, True):
            row = measure(Path(name), args.blocks, args.rounds, fused=fused)
            rows.append(row)
            print(
                f"{row.layers}: {row.weights_gb:.2f} GB at {row.wall_gb_s:.2f} GB/s, "
                f"{row.cpu_gb_s:.2f} by CPU time on {row.threads} threads; at most "
                f"{row.peak_mb:.0f} MB held, {row.peak_ratio:.2f} times the largest layer"
            )
    if args.out:
        save(args.out, COMMAND, words if words is not None else sys.argv[1:], map(asdict, rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"load_checkpoint: {error}", file=sys.stderr)
        sys.exit(2)
