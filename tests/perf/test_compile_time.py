"""What a build takes, by phase, and against another version."""

import json
from dataclasses import replace

import pytest

from ferrum_numba.perf import compile_time
from ferrum_numba.perf.compile_time import Built

ONE = Built(
    "this", "decode", "M=1", 0.5, {"nvvm": 0.1, "link": 0.1, "sass": 0.0}, 300.0, 128, 0
)  # fmt: skip
OTHER = replace(ONE, version="other", cpu_s=2.5)


def test_the_front_end_is_what_the_other_phases_leave():
    assert ONE.front_end_s == pytest.approx(0.3)


def test_only_what_both_versions_built_is_compared():
    alone = replace(ONE, problem="M=2", cpu_s=9.0)
    assert compile_time.ratios([ONE, OTHER, alone]) == [pytest.approx(0.2)]
    assert compile_time.ratios([ONE, alone]) == []


def test_a_kernel_is_a_line_of_medians():
    slow = replace(ONE, problem="M=2", cpu_s=0.7)
    *_, line = compile_time.table([ONE, OTHER, slow])
    assert line == "| decode | 2 | 0.60 | 0.40 | 0.10 | 0.10 | 2.50 | 0.200 |"


def test_programs_are_built_and_kept(tmp_path, capsys):
    out = tmp_path / "times.json"
    words = ["add_bias", "repack", "--each", "1", "--out", str(out)]
    assert compile_time.main(words) == 0
    found = json.loads(out.read_text())
    assert [row["kernel"] for row in found["rows"]] == ["repack", "add_bias"]
    for row in found["rows"]:
        assert 0 < row["phases"]["nvvm"] < row["cpu_s"]
        assert 0 < row["phases"]["link"] < row["cpu_s"]
        assert row["registers"] > 0
    assert found["environment"]["command"].endswith("--out times.json")
    assert "| repack | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "nowhere"], "nowhere holds no ferrum_numba"),
        (["nonsense"], "no kernel is called nonsense"),
        (["--each", "0"], "--each must be at least 1; got 0"),
        (["--gpu", "nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        compile_time.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
