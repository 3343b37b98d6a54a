"""What `bench --ceilings` makes of rows: rates, the best of each, and what a hot board holds."""

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from result_rows import make_environment, make_row

from ferrum_numba.cli import ceilings
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.measure import Samples
from ferrum_numba.measure.sustained import held
from ferrum_numba.results import ResultFile

BY_NAME = {kernel.name: kernel for kernel in CEILINGS}


def row_of(name, us=100.0, **changes):
    row = make_row(name, us, **changes)
    return ceilings.with_rate(row, BY_NAME[name])


def test_a_row_says_what_it_is_a_ceiling_of():
    more = row_of("wgmma_fed_int8").more
    assert more["ceiling"] == {"kind": "tensor", "dtype": "int8", "fed": True, "per": 1}
    work = BY_NAME["wgmma_fed_int8"].op.work(BY_NAME["wgmma_fed_int8"].op.tests[-1])
    assert (more["unit"], more["rate"]) == ("TOP/s", pytest.approx(work.flops / 1e8))
    assert row_of("grid_barrier", 128.0).more["rate"] == 2.0


def test_the_best_right_row_of_each_is_the_ceiling(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = [
        row_of("dram_read", 250.0), row_of("dram_read", 240.0),
        row_of("dram_read", 1.0, ok=False, status="wrong"), row_of("kernel_ramp", 3.0),
    ]  # fmt: skip
    found = ceilings.best_rows(rows)
    assert [(row.kernel, row.us) for row in found] == [("dram_read", 240.0), ("kernel_ramp", 3.0)]
    hot = {"rate": 4000.0, "clock_mhz": 1500.0, "power_w": 690.0, "throttle": ["power cap"]}
    rows[1] = replace(rows[1], more={**rows[1].more, "sustained": hot})
    ceilings.show_ceilings(None, rows, "a board")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "dram_read" in line)
    assert all(word in line for word in ("4474", "4000", "0.8941", "1500", "690", "power cap"))
    assert "DRAM" in line


def test_each_op_is_timed_on_its_own_largest_problem(monkeypatch):
    asked = []

    def timed(session, kernels, problems):
        (problem,) = problems
        asked.append(([kernel.name for kernel in kernels], problem))
        rows = [make_row(k.name, 100.0, op=k.op.name, problem=asdict(problem)) for k in kernels]
        return ResultFile(make_environment(), rows)

    monkeypatch.setattr(ceilings.gpu, "live", lambda: KNOWN["h200"])
    session = SimpleNamespace(ceilings=CEILINGS)
    file = ceilings.measured_ceilings(session, timed, 0.0)
    here = [kernel for kernel in CEILINGS if kernel.runs_on(KNOWN["h200"])]
    assert [row.kernel for row in file.rows] == [n for names, _ in asked for n in names]
    assert sorted(row.kernel for row in file.rows) == sorted(kernel.name for kernel in here)
    assert ["dram_read", "dram_read_bulk"] in [names for names, _ in asked]
    assert all(row.more["rate"] > 0 for row in file.rows if row.more["unit"] != "us")
    problems = {name: problem for names, problem in asked for name in names}
    assert all(problems[kernel.name] == kernel.op.tests[-1] for kernel in here)
    assert all(kernel.refuses(problems[kernel.name]) is None for kernel in here)


def samples(us, mhz, power=None, throttle=()):
    return Samples((us, us), "cold", 1, (1980.0, mhz), power, 60.0, throttle)


def test_what_is_sustained_is_the_second_half():
    taken = [
        samples(9.0, 1980.0, 300.0), samples(9.5, 1900.0, 500.0),
        samples(12.0, 1500.0, 690.0, ("power cap",)), samples(12.2, 1480.0, 700.0),
    ]  # fmt: skip
    found = held(taken, 2.0)
    assert (found.us, found.us_low, found.us_high) == (12.1, 12.0, 12.2)
    assert (found.clock_mhz, found.power_w, found.temperature_c) == (1490.0, 695.0, 60.0)
    assert (found.throttle, found.seconds) == (("power cap",), 2.0)
    assert held([samples(9.0, None)], 1.0).power_w is None


def where(_):
    return {"process": os.getpid()}


def die(_):
    os._exit(3)


def test_what_is_sustained_is_so_in_a_process_of_its_own():
    assert ceilings.apart(where, None)["process"] != os.getpid()
    with pytest.raises(BrokenProcessPool):
        ceilings.apart(die, None)


@pytest.mark.gpu
@pytest.mark.usefixtures("device")
def test_gpu_the_best_of_a_ceiling_is_sustained_at_a_rate():
    kernel = BY_NAME["dram_copy"]
    config = asdict(kernel.default(kernel.op.tests[-1], KNOWN["h200"]))
    rows = [row_of("dram_copy", us, config=config) for us in (900.0, 1000.0)]
    best, other = ceilings.sustained([kernel], rows, 0.6)
    assert 100 < best.more["sustained"]["rate"] < 20_000
    assert "sustained" not in other.more


@pytest.mark.gpu
def test_gpu_a_sustained_run_lasts(device):
    from ferrum_numba.compile import build
    from ferrum_numba.launch import OperandSet
    from ferrum_numba.measure import Policy
    from ferrum_numba.measure.sustained import sustain

    kernel = BY_NAME["dram_copy"]
    problem = kernel.op.tests[-1]
    config = kernel.default(problem, device.gpu)
    operands = OperandSet(device, kernel, problem)
    calls = operands.bind(config, build(kernel, config, device.gpu.arch)).calls()
    taken = sustain(device, calls, "cold", Policy(), 0.6)
    assert taken.seconds >= 0.6
    assert 0 < taken.us_low <= taken.us <= taken.us_high
