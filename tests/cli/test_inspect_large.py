"""`inspect` of as many tensors as the largest models have: what it costs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

SHARDS, LAYERS = 1000, 50
LAYER = {
    "qweight": np.zeros((8, 64), np.int32),
    "scales": np.ones((2, 64), np.float16),
    "qzeros": np.full((2, 8), 0x77777777, np.int32),
    "g_idx": np.arange(64, dtype=np.int32) // 32,
}
# seconds of the processor, and kilobytes, as the command ends
COST = """
import resource, sys
from ferrum_numba.__main__ import main
status = main()
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def model(tmp_path):
    """Write 1,000 shards of 200 tensors."""
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        names = [f"model.layers.{shard // 10}.mlp.experts.{shard % 10 * 50 + e}.up_proj"
                 for e in range(LAYERS)]  # fmt: skip
        tensors = {f"{name}.{part}": array for name in names for part, array in LAYER.items()}
        (tmp_path / file).write_bytes(save(tensors))
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    return tmp_path


@pytest.mark.slow
def test_200_000_tensors_in_1_000_shards(model):
    command = [sys.executable, "-c", COST, "inspect", str(model)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{SHARDS * LAYERS} quantised layers" in run.stdout
    seconds, kilobytes = run.stderr.split()[-2:]
    # 2.6 s and 320 MB on a core of a server's; other tests may run beside this one
    assert float(seconds) < 6
    assert int(kilobytes) < 500_000
