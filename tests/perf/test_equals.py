"""Finals of equals, on boards that are made up and on the GPU."""

import json

import pytest

from ferrum_numba.errors import DeviceError
from ferrum_numba.perf import equals
from ferrum_numba.tune.noise import Board, Noise
from ferrum_numba.tune.worker import Candidate

ONE = Candidate(None, 0, None, None)


def test_finals_of_one_candidate_are_finals_of_equals():
    held = list(equals.finals(Board([10.0], Noise("", white=0.003), 0), ONE, 3, 4))
    assert [len(outcomes) for _, outcomes in held] == [3] * 4
    found = equals.figures(held)
    assert (found.falsely, found.held) == (0.0, 1.0)
    assert 32 <= found.rounds <= 48
    assert 0.001 < found.spread < 0.01
    assert str(found).startswith(f"told apart 0.0%, intervals hold 100.0%, {found.rounds:.0f} rou")


def test_what_is_told_apart_is_counted():
    class Unfair(Board):
        def round(self, candidates, turn, samples):
            first, *others = super().round(candidates, turn, samples)
            worse = tuple(1.2 * us for us in first.us)
            return [type(first)("measured", us=worse, extra=first.extra), *others]

    held = list(equals.finals(Unfair([10.0], Noise("", white=0.003), 0), ONE, 2, 3))
    found = equals.figures(held)
    assert (found.falsely, found.held) == (1.0, 0.0)


def test_a_lost_process_ends_it():
    class Lost(Board):
        def round(self, candidates, turn, samples):
            return None

    lost = Candidate(type("Toy", (), {"name": "toy"}), 0, None, None)
    with pytest.raises(DeviceError, match="no final of toy came to its second round"):
        list(equals.finals(Lost([10.0], Noise(""), 0), lost, 2, 1))


def test_an_unknown_kernel_is_named():
    assert [kernel.name for kernel in equals.kernels([])] == ["decode", "prefill"]
    with pytest.raises(DeviceError, match="no kernel is called none; there are "):
        equals.kernels(["decode", "none"])


@pytest.mark.gpu
@pytest.mark.timing
def test_equals_on_the_gpu_are_not_told_apart(tmp_path, capsys):
    out = tmp_path / "rounds.json"
    equals.main(["decode", "--m", "16", "--equals", "2", "4", "--finals", "5", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "decode M=16, 2 equals",
        "decode M=16, 4 equals",
    ]
    assert all("told apart 0.0%" in line for line in lines)
    assert [len(one["rounds"]) for one in json.loads(out.read_text())] == [5, 5]
