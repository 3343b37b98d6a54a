"""The page on layers of experts: its example runs, and what it names is there."""

import re
from pathlib import Path

import gptq_layers
import numpy as np

import ferrum_numba
from ferrum_numba.kernels import GROUPED, MOE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "experts.md").read_text()
EXAMPLE = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
H, INNER, NUM_EXPERTS = 64, 32, 4


def test_the_example(rng, tmp_path, monkeypatch):
    sizes = {"gate_proj": (H, INNER), "up_proj": (H, INNER), "down_proj": (INNER, H)}
    layers = {
        f"model.layers.0.mlp.experts.{e}.{name}": gptq_layers.make(rng, *size)
        for e in range(NUM_EXPERTS) for name, size in sizes.items()
    }  # fmt: skip
    config = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "quant_method": "gptq"}
    monkeypatch.chdir(tmp_path)
    stored = {name: layer.gptq() for name, layer in layers.items()}
    gptq_layers.write(Path("model_dir"), stored, config)
    found = {}
    exec(EXAMPLE.replace('"cuda:0"', '"cpu"'), found)
    want = np.zeros((5, H))
    for e in (0, 3):
        gate, up, down = (layers[f"model.layers.0.mlp.experts.{e}.{name}"].weight for name in sizes)
        g, u = (found["x"].astype(np.float64) @ weight for weight in (gate, up))
        want += (g / (1 + np.exp(-g)) * u) @ down / 2
    assert found["y"].shape == want.shape
    # three roundings to fp16
    np.testing.assert_allclose(found["z"], want, rtol=0, atol=2**-9 * np.abs(want).max())


def test_what_the_page_names_is_there():
    named = set(re.findall(r"`(\w+)`", PAGE))
    public = {"add_bias", "gemm_phase_batched", "marlin_gemm_moe", "moe_combine"}
    assert public <= named & set(ferrum_numba.__all__)
    assert {kernel.name for kernel in (*MOE, *GROUPED)} <= named
