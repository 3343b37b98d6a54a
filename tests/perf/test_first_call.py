"""The first call of a tuned problem: nothing is compiled for it, so nobody waits."""

import pytest

from ferrum_numba import shipped
from ferrum_numba.gpu import live
from ferrum_numba.perf import first_call


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.parametrize("problem", first_call.PROBLEMS, ids=str)
def test_the_first_call_comes_at_once(problem, monkeypatch):
    monkeypatch.delenv(shipped.ENVIRONMENT_VARIABLE)
    if live().key != "h200":
        pytest.skip("its programs ship for the H200")
    found = first_call.measure(problem)
    assert (found["numba"], found["compiled"]) == (False, 0)
    assert found["first_ms"] <= first_call.LIMIT_MS


def test_without_a_gpu_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr("ferrum_numba.gpu._driver_gpus", lambda: "the driver is missing")
    with pytest.raises(first_call.FerrumError, match="no GPU to run on: the driver is missing"):
        first_call.main([])


def test_a_late_call_or_a_compiler_shows(monkeypatch, capsys):
    good = {"layer_ms": 900.0, "first_ms": 12.0, "second_ms": 0.1, "compiled": 0, "numba": False}
    monkeypatch.setattr(first_call.gpu, "live", lambda: None)
    for changed, status in (({}, 0), ({"first_ms": 51.0}, 1), ({"numba": True}, 1)):
        monkeypatch.setattr(first_call, "measure", lambda problem, c=changed: {**good, **c})
        assert first_call.main([]) == status
    assert "first call 51.0 ms" in capsys.readouterr().out
