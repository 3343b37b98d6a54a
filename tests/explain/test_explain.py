"""What `explain` says: true of the program and its launch, in 80 columns, of any kernel."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from axpy import Axpy
from axpy import Problem as AxpyProblem

from ferrum_numba import cli, gpu
from ferrum_numba.compile import sass
from ferrum_numba.errors import ProblemError
from ferrum_numba.explain import explain
from ferrum_numba.explain.fragments import fragments
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.ptx import mma, mma8, wgmma

H200 = gpu.find("h200")
SMALL = W4A16Problem(1, 4096, 4096)


@pytest.fixture(scope="module")
def decode():
    return explain(Decode(), SMALL)


@pytest.fixture(scope="module")
def axpy():
    return explain(Axpy(), AxpyProblem(1000))


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        status = cli.main((*KERNELS, Axpy()), {}, argv)
        return status, *capsys.readouterr()

    return run


def test_facts_of_decode_are_those_of_its_config_and_its_launch(decode):
    config = Decode().default(SMALL, H200)
    launch = Decode().launch(config, SMALL, H200)
    assert (decode.launch.grid, decode.cluster) == (launch.grid, (config.cluster, 1, 1))
    assert (decode.num_threads, decode.smem_bytes) == (config.num_threads, config.smem_bytes)
    assert (decode.spill_bytes, decode.stack_bytes, decode.doubles) == (0, 0, 0)
    assert [region.name for region in decode.regions] == ["x", "sums", "blocks", "barrier"]
    held = decode.occupancy
    # 256 threads of 128 registers: two blocks are all 65536 registers
    assert (decode.registers, held.blocks_per_sm, held.limited_by) == (128, 2, ["registers"])
    assert (held.limits["threads"], held.limits["blocks"]) == (8, 32)
    assert held.limits["shared memory"] == 233472 // (54288 + 1024 + 112)
    assert held.waves == launch.grid[0] / (2 * 132)
    assert decode.bound.limit == "latency"
    if sass.nvdisasm():
        assert decode.mix["HMMA"] > 0


def test_what_binds_is_said_of_the_larger_work():
    found = explain(Decode(), replace(SMALL, N=32768, K=8192))
    assert found.bound.limit == "memory"
    assert found.bound.us == pytest.approx(found.work.bytes / H200.dram_gbps / 1e3)
    assert "what binds: memory" in found.text()


def test_text_fits_and_names_all_that_is_asked_for(decode):
    for width in (60, 80, 120):
        assert max(map(len, decode.text(width).splitlines())) <= width
    text = " ".join(decode.text().split())
    for words in (
        "decode on M=1 N=4096 K=4096, the default config",
        "grid 128 x 1 x 1 = 128 blocks of 256 threads", "clusters of 2 x 1 x 1 blocks",
        "an SM holds 2 blocks at once, 16 of 64 warps; limited by registers",
        "128 registers, 0 bytes spilled", "34816 8 x 2176 sums: sums of the warps along K",
        "what binds: launch and ramp-up", "packed weight, 16 bytes a lane: the lane of each (k, n)",
        "0.1 = (8, 0), 0.2 = (0, 8)", "A of mma.m16n8k16, f16",
    ):  # fmt: skip
        assert words in text
    # k = 2 of the packed tile: lanes 1, 5, 9, ...
    assert re.search(r"^ +2 +1 +5 +9 +13 +17 +21 +25 +29 +1", decode.text(), re.MULTILINE)
    assert "who holds what" not in decode.text(pictures=False)


def test_a_picture_has_every_region_and_every_lane(decode):
    root = ET.fromstring(decode.svg())
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    lanes = [title for title in titles if title.startswith("lane ")]
    assert len(lanes) == 32 * len(decode.tiles)
    assert "lane 5, word.nibble: (k, n) = 0.0: (2, 1), 0.1: (10, 1), 0.2: (2, 9)" in lanes[26]
    assert any(title.startswith("sums, at 34816, 17408 bytes (8 × 2176)") for title in titles)
    html = decode._repr_html_()
    assert html.startswith("<table><caption>decode on M=1 N=4096 K=4096, the default config")
    assert (
        '<th scope="row">a thread</th><td style="text-align:left">128 registers, 0 bytes spilled'
        in html
    )
    assert html.endswith("</svg>")
    # what the table says is not drawn, too
    assert "128 registers" not in decode.svg(facts=False)
    assert repr(decode) == decode.text(pictures=False)


def test_a_kernel_that_says_nothing_is_explained_in_words(axpy):
    assert (axpy.regions, axpy.tiles) == ((), ())
    text = " ".join(axpy.text().split())
    assert "shared memory of a block none is asked for at launch" in text
    assert "config: num_threads=64 fault=" in text
    assert "who holds what" not in text
    assert "Who holds what" not in axpy.svg()
    assert "4004 bytes of scratch: count" in text
    ET.fromstring(axpy.svg())
    silent = replace(axpy, smem_bytes=512)
    words = "512 bytes, of which the kernel does not say what lies where"
    assert words in " ".join(silent.text().split())
    assert words in silent.svg()


def test_without_nvdisasm_it_says_what_to_install(axpy):
    assert "pip install nvidia-cuda-nvdisasm" in replace(axpy, mix=None).text()
    assert replace(axpy, mix=None).to_json()["sass"] is None


def test_without_ceilings_it_says_so(axpy):
    assert "no ceiling of memory or tensor cores is known" in replace(axpy, bound=None).text()
    assert replace(axpy, bound=None).to_json()["bound"] is None


PTX = """
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2};
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f5, %f6, %f7, %f8}, {%r1, %r2};
mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r9}, {%r1, %r2};
wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {p0, p1}, {%r1, %r2}, %rd1, 1, 1, 1, 0;
wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {p0, p1}, %rd0, %rd1, 1, 1, 1;
"""


def test_fragments_are_read_off_the_ptx():
    found = {tile.name: tile for tile in fragments(PTX)}
    assert list(found) == [
        "A of mma.m16n8k16, bf16", "B of mma.m16n8k16, bf16", "C of mma.m16n8k16, bf16",
        "A of mma.m16n8k32, s8", "B of mma.m16n8k32, s8", "C of mma.m16n8k32, s8",
        "D of wgmma.m64n8k32, e4m3", "A of wgmma.m64n16k16, f16", "D of wgmma.m64n16k16, f16",
    ]  # fmt: skip
    expected = {
        "A of mma.m16n8k16, bf16": (mma.A_ROW, mma.A_COLUMN, 2),
        "B of mma.m16n8k32, s8": (mma8.B_ROW, mma8.B_COLUMN, 4),
        "D of wgmma.m64n16k16, f16": (*wgmma.accumulator_index(16), 1),
    }
    for name, (row, column, each) in expected.items():
        tile = found[name]
        for lane, element in np.ndindex(row.shape):
            at = row[lane, element], column[lane, element]
            register, part = divmod(element, each)
            place = f"{register}.{part}" if each > 1 else str(register)
            assert (tile.lane[at], tile.place[at]) == (lane, place)
    # warp 2 of the warpgroup
    assert found["A of wgmma.m64n16k16, f16"].lane[33, 2] == 64 + 4 + 1


def test_what_cannot_run_is_refused():
    with pytest.raises(ProblemError, match="only adds tokens of zeros"):
        explain(Decode(), SMALL, Decode().default(replace(SMALL, M=16), H200))
    with pytest.raises(ProblemError, match="act_order = True"):
        explain(Decode(), replace(SMALL, act_order=True))


def test_the_command_says_it_draws_it_and_gives_it_to_programs(run, tmp_path):
    sizes = ("--problem", "M=1,N=4096,K=4096")
    status, out, _ = run("explain", "decode", *sizes, "--gpu", "h200", "--svg", "d.svg")
    assert status == 0
    assert out.startswith("decode on M=1 N=4096 K=4096, the default config\n")
    ET.parse(tmp_path / "d.svg")
    status, out, _ = run("explain", "decode", *sizes, "--config", "cluster=1", "--json")
    found = json.loads(out)
    assert found["differs"] == {"cluster": 1}
    assert found["occupancy"]["limited_by"] == ["registers"]
    assert found["smem_map"][1]["offset"] == 34816
    assert found["tiles"][0]["lane"][2][1] == 5
    assert {term["limit"] for term in found["bound"]["terms"]} >= {"memory", "tensor"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["decod"], "no kernel is named decod; did you mean decode?"),
        ([], "explain is of one kernel, such as `explain decode`; got 0"),
        (["decode", "marlin"], "explain is of one kernel, such as `explain decode`; got 2"),
        (["decode", "--config", "tile=3"], "Config has no field tile; did you mean tile_m?"),
        (["decode", "--config", "tile_m=9"], "tile_m must be 8, 16 or 32; got tile_m = 9"),
        (["prefill", "--gpu", "a100"], "prefill has no config for NVIDIA A100"),
        (["axpy", "--svg", "no/such/there.svg"], "no/such/there.svg cannot be written: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(argv, words, run, tmp_path):
    (tmp_path / "no").write_text("a file")
    status, out, err = run("explain", *argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_new_kernel_of_ones_own_is_explained(run, monkeypatch, tmp_path):
    assert run("new", "explained_op")[0] == 0
    monkeypatch.syspath_prepend(tmp_path)
    own = ("explained_op", "--kernels", "explained_op.kernels", "--problem", "M=4096,N=4096")
    status, out, _ = run("explain", *own, "--config", "items=1")
    assert status == 0
    assert "explained_op on M=4096 N=4096, items=1\n" in out
    assert "grid 65536 x 1 x 1 = 65536 blocks of 256 threads" in out
    assert "what binds: memory" in out
