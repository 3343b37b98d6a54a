"""A trace says what is wasted, and at which line; and nothing where nothing is."""

import json
import re

import pytest
from wasteful import THOUSAND, Config, Wasteful, place

import ferrum_numba
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem

KERNEL = Wasteful()


def traced(waste=""):
    return ferrum_numba.trace(KERNEL, THOUSAND, Config(waste))


@pytest.fixture(scope="module")
def sound():
    return traced()


@pytest.fixture(scope="module")
def decode():
    return ferrum_numba.trace(Decode(), W4A16Problem(M=1, N=128, K=256))


def line_at(trace, mark):
    (found,) = [line for line in trace.lines if line.place == place(mark)]
    return found


def test_a_kernel_without_waste_has_no_remark(sound):
    assert sound.checked.ok
    assert sound.remarks == ()
    assert (sound.num_blocks, sound.num_warps) == (1, 32)
    reads, writes = line_at(sound, "reads x"), line_at(sound, "writes")
    assert (reads.executed, reads.lanes, reads.instructions) == (64, 32, 64)
    assert vars(reads.of("ld.global")) == {
        "count": 32, "lanes": 1024, "units": 128, "least": 128, "worst": 4, "needed": 4,
        "stride_bytes": 4,
    }  # fmt: skip
    assert reads.of("st.shared").units == 32
    assert writes.of("st.global").units == 128
    assert sound.total("ld.global").units == 256
    # each warp waits at the only barrier
    assert sum(line.waits for line in sound.lines) == 32


@pytest.mark.parametrize(
    ("waste", "mark", "words"),
    [
        (
            "uncoalesced", "reads x",
            "reads 32 sectors a warp where 4 would do: neighbouring lanes are 128 bytes apart",
        ),
        (
            "conflict", "reads x",
            "writes with bank conflicts, 8-way: 8 wavefronts a warp where 1 would do; "
            "neighbouring lanes are 32 bytes apart",
        ),
        ("conflict", "reads again", "reads with bank conflicts, 8-way: 8 wavefronts a warp"),
        (
            "idle", "writes",
            r"keeps 24 of 32 lanes idle on average \(24 on another way or gone\), in \d\d%",
        ),
        ("predicated", "predicated", r"keeps 28 of 32 lanes idle on average \(28 predicated off\)"),
    ],
)  # fmt: skip
def test_each_waste_is_named_with_its_line(waste, mark, words):
    trace = traced(waste)
    assert trace.checked.ok
    said = [remark for remark in trace.remarks if remark.startswith(f"{place(mark)} ")]
    assert any(re.search(words, remark) for remark in said), trace.remarks


def test_the_eight_way_conflict_is_counted(sound):
    wavefronts = traced("conflict").total("st.shared", "ld.shared")
    least = sound.total("st.shared", "ld.shared")
    assert (wavefronts.units, wavefronts.least) == (8 * 64, 64)
    assert (least.units, least.least) == (64, 64)


def test_decode_reads_every_byte_of_the_weight_once_by_whole_sectors(decode):
    assert decode.checked.ok
    weights = [line for line in decode.lines if "load(tile" in line.text]
    assert sum(line.of("ld.global").units for line in weights) * 32 >= 128 * 256 // 2
    assert all(line.of("ld.global").units == line.of("ld.global").least for line in weights)
    assert decode.total("ldmatrix").units == decode.total("ldmatrix").least > 0
    assert decode.total("ld.shared", "st.shared").units > 0
    # a token's 16 lanes of 32 copy x
    copies = [line for line in decode.lines if "cp.async" in line.requests]
    assert [line.lanes for line in copies] == [16.0]
    assert decode.in_flight > 0


def test_it_is_json_and_a_table_of_a_notebook(sound):
    kept = json.loads(json.dumps(sound.to_json()))
    assert kept["totals"]["ld.global"]["units"] == 256
    assert [line["place"] for line in kept["lines"]] == [line.place for line in sound.lines]
    html = traced("conflict")._repr_html_()
    assert "<table>" in html
    assert "256/32" in html
    assert "with bank conflicts, 8-way" in html


def test_what_is_wrong_is_said_of_what_could_be_counted():
    class Wrong(Wasteful):
        def prepare(self, problem, inputs):
            return {**inputs, "x": inputs["x"][:512]}

    trace = ferrum_numba.trace(Wrong(), THOUSAND)
    assert not trace.checked.ok
    assert "outside its 2048 bytes" in trace.checked.reason
    assert trace.checked.reason in trace._repr_html_()
