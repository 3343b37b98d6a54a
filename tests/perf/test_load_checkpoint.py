"""perf/load_checkpoint.py: what it writes, loads and reports, of a model that is quickly done."""

import json

import numpy as np
import pytest

from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.perf import load_checkpoint as module

SMALL = {name: (K // 32, max(N // 32, 64)) for name, (K, N) in module.LAYERS.items()}


@pytest.fixture
def folder(tmp_path):
    module.write(tmp_path, 2, SMALL)
    return tmp_path


def test_a_model_of_its_shape_is_written(folder):
    with GptqCheckpoint.open(folder) as checkpoint:
        infos = checkpoint.layers()
        assert {info.error for info in infos} == {None}
        assert {info.name: (info.K, info.N) for info in infos} == {
            f"model.layers.{block}.{name}": size
            for block in range(2)
            for name, size in SMALL.items()
        }
        assert {(info.group_size, info.sym) for info in infos} == {(128, True)}
    assert len(list(folder.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(("fused", "layers"), [(False, 14), (True, 8)])
def test_all_of_it_is_loaded(folder, fused, layers):
    row = module.measure(folder, 2, 1, fused=fused)
    with GptqCheckpoint.open(folder) as checkpoint:
        names = module.names_of(checkpoint, fused=fused)
        sizes = list(module.load(checkpoint, names))
    assert len(sizes) == layers
    assert row.weights_gb == pytest.approx(sum(sizes) / 1e9)
    assert row.largest_mb == pytest.approx(max(sizes) / 1e6)
    # codes, and a scale for 128 of them
    elements = 2 * sum(K * N for K, N in SMALL.values())
    assert sum(sizes) == elements * (0.5 + 2 / 128)
    assert row.peak_mb > row.largest_mb
    assert min(row.wall_gb_s, row.cpu_gb_s) > 0


def test_the_figures_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.write, "__defaults__", (SMALL,))
    out = tmp_path / "figures.json"
    words = ["--blocks", "1", "--rounds", "1", "--folder", str(tmp_path), "--out", str(out)]
    assert module.main(words) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "stored",
        "fused",
    ]
    kept = json.loads(out.read_text())
    assert [row["layers"] for row in kept["rows"]] == ["stored", "fused"]
    assert kept["environment"]["command"].endswith(
        f"load_checkpoint --blocks 1 --rounds 1 --folder {tmp_path.name} --out figures.json"
    )
    # nothing stays of the model
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_zero_points_are_8():
    assert np.uint32(module.ZEROS.view(np.uint32)) == 0x77777777
