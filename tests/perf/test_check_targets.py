"""perf/check_targets.py: a line a target, and a status for a nightly job."""

import pytest
from result_rows import make_environment, make_row

from ferrum_numba.errors import StoreError
from ferrum_numba.perf.check_targets import main
from ferrum_numba.results import ResultFile, save

TARGET = '[[target]]\nname = "all"\nop = "w4a16_gemm"\nof = "DRAM"\nat_least = 0.5\n'


def write(tmp_path, us):
    rows = [make_row(us=us, samples=[us] * 7, bytes=1e7)]
    save(tmp_path / "run" / "w4a16_gemm.json", ResultFile(make_environment(), rows))
    ceiling = make_row("dram_read", op="dram_read", gbps=1000.0, problem={"size_bytes": 4096})
    save(tmp_path / "run" / "ceilings.json", ResultFile(make_environment(), [ceiling]))
    (tmp_path / "targets.toml").write_text(TARGET)
    return [str(tmp_path / "run"), "--targets", str(tmp_path / "targets.toml")]


@pytest.mark.parametrize(
    ("us", "status", "word"), [(15.0, 0, "met: all"), (40.0, 1, "MISSED: all")]
)
def test_a_target_that_is_missed_is_status_1(tmp_path, capsys, us, status, word):
    assert main(write(tmp_path, us)) == status
    out = capsys.readouterr().out
    assert out.startswith(word)
    assert f"worst {10 / us:.0%}" in out


def test_the_recorded_results_are_checked_by_default(capsys):
    assert main([]) == 0
    assert "met: prefill, large weights: at least 76% of tensor" in capsys.readouterr().out


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(StoreError, match="has no result files"):
        main([str(tmp_path)])
