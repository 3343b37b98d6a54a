"""The page on models of torch's: its example runs, and every public name is on it."""

import re
from pathlib import Path

import gptq_layers
import pages
import pytest

torch = pytest.importorskip("torch")

import ferrum_numba.torch  # noqa: E402

PAGE = pages.ROOT / "docs" / "torch.md"
(EXAMPLE,) = (block.text for block in pages.fenced(PAGE, "python"))


@pytest.mark.filterwarnings("ignore")
def test_the_example(rng, tmp_path, monkeypatch):
    layer = gptq_layers.make(rng)
    config = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "quant_method": "gptq"}
    monkeypatch.chdir(tmp_path)
    name = "model.layers.0.self_attn.o_proj"
    gptq_layers.write(Path("model_dir"), {name: layer.gptq()}, config)
    found = {}
    torch._dynamo.reset()
    exec(EXAMPLE.replace('"cuda"', '"cpu"'), found)
    want = found["x"].float() @ torch.from_numpy(layer.weight).float()
    # one rounding to fp16, of sums of many terms
    torch.testing.assert_close(found["y"].float(), want, rtol=2**-9, atol=2e-3)
    assert torch.equal(found["again"](found["x"]), found["y"])


def test_every_public_name_is_on_the_page():
    named = set(re.findall(r"\w+", PAGE.read_text()))
    assert set(ferrum_numba.torch.__all__) - named == {"Layout"}
