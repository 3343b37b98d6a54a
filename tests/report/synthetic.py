"""Synthetic results, and a report's files as a test reads them."""

import json
import math
from dataclasses import asdict, replace
from html.parser import HTMLParser

from ferrum_numba.gpu import KNOWN
from ferrum_numba.report import Sources
from ferrum_numba.results import CheckRow, Planned, ResultFile, Row

H200 = replace(KNOWN["h200"], source="live", uuid="GPU-synthetic")
NASTY = 'relative error 0.5 <b onload="x"> & | more'
VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})


def synthetic_environment(**changes):
    environment = {
        "gpu": H200.name, "uuid": H200.uuid, "driver": "580.1", "versions": {"numpy": "2.4"},
        "commit": "0123abcd", "dirty": False, "date": "2026-11-22T10:00:00.000+00:00",
        "command": "ferrum-numba tune", "clocks": {"sm_mhz": 1980}, "policy": {"samples": 15},
        "gpu_facts": asdict(H200),
    }  # fmt: skip
    return environment | changes


def synthetic_row(kernel="decode", size=8, us=40.0, **changes):
    n, k = 28672, 8192
    flops, size_bytes = 2 * size * n * k, n * k // 2 + 2 * size * (n + k)
    bound_us = max(size_bytes / 4800e3, flops / 989.4e6)
    row = {
        "kernel": kernel, "op": "gemm", "config": {"tile_m": 16, "num_stages": 4},
        "problem": {"M": size, "N": n, "K": k, "group_size": 128}, "arch": "sm_90a",
        "regime": "cold", "us": us, "us_low": us * 0.99, "us_high": us * 1.01, "samples": [us],
        "flops": flops, "bytes": size_bytes, "gbps": size_bytes / us / 1e3,
        "tflops": flops / us / 1e6, "bound_us": bound_us, "fraction": bound_us / us,
        "rel_error": 2.1e-4, "max_error": 1e-3, "ok": True, "status": "measured", "reason": "",
        "registers": 168, "spill_bytes": 0, "smem_bytes": 66560, "blocks_per_sm": 2,
        "source_hash": "h", "seed": 0,
    }  # fmt: skip
    return Row.from_json(row | changes)


def no_time(kernel="decode", size=8, **changes):
    names = ("us", "us_low", "us_high", "gbps", "tflops", "fraction", "rel_error")
    row = replace(synthetic_row(kernel, size), samples=(), ok=False, **changes)
    return replace(row, **dict.fromkeys(names, math.nan))


ROWS = [
    synthetic_row("decode", 1, 33.21),
    synthetic_row("decode", 8, 35.13),
    synthetic_row("decode", 8, 35.91, config={"tile_m": 32, "num_stages": 2}),
    synthetic_row("wgmma", 8, 35.3),
    synthetic_row("wgmma", 1024, 700.5, tflops=686.7, registers=170),
    synthetic_row("slow", 8, 99.5),
    synthetic_row("wgmma", 1, 30.0, ok=False, status="wrong", reason=NASTY, rel_error=float("inf")),
    no_time("wgmma", 1, status="refused", reason="needs 230 KB, the GPU has 227 KB"),
    no_time("wgmma", 8, status="refused", reason="needs 240 KB, the GPU has 227 KB"),
    synthetic_row("decode", 8, 90.0, status="slow", config={"tile_m": 64, "num_stages": 2}),
]
PEERS = {
    "gpu": "NVIDIA H200", "date": "2026-11-21", "source": "synthetic table", "regime": "cold",
    "rows": [
        {"op": "gemm", "problem": {"M": 8, "N": 28672, "K": 8192}, "peer": who, "kind": kind,
         "us": us}
        for who, kind, us in [("humming", "4-bit", 40.8), ("machete", "4-bit", 45.0),
                              ("cuBLAS fp16", "fp16", 120.5)]
    ],
}  # fmt: skip


def ceiling(kernel, us, gbps, tflops):
    return synthetic_row(
        kernel, us=us, us_low=us * 0.99, us_high=us * 1.01, gbps=gbps, tflops=tflops, op="ceiling",
        problem={"size": 1}, config={},
    )  # fmt: skip


CEILINGS = ResultFile(
    synthetic_environment(command="ferrum-numba bench --ceilings"),
    [ceiling("dram_read", 100.0, 4400.0, 0.0), ceiling("wgmma", 50.0, 0.0, 880.0)],
)
PLAN = [
    Planned(
        "decode", "gemm", {"M": m, "N": 28672, "K": 8192}, {"tile_m": t}, "sm_90a",
        registers=100 + t, spill_bytes=t // 64 * 8, smem_bytes=65536, blocks_per_sm=2,
        flops=m * 469762048, bytes=117440512 + m, bound_us=24.5 + m,
        status="spills" if t // 64 else "ok", reason="8 B" * (t // 64),
    )
    for m in (1, 64) for t in (16, 32, 64)
]  # fmt: skip
CHECKS = [
    CheckRow(
        kernel, "gemm", {"M": m, "N": 64, "K": 128}, {"tile_m": 16},
        ok=(kernel, m) != ("wgmma", 17), reason=NASTY if m == 17 else "", how="interpreter",
        rel_error=m * 1e-5, max_error=1e-3, seconds=1.0,
    )
    for kernel in ("decode", "wgmma") for m in (1, 17)
]  # fmt: skip
FULL = Sources(
    [ResultFile(synthetic_environment(), ROWS)], [CEILINGS], PLAN, CHECKS, [PEERS], asdict(H200)
)
EMPTY = Sources(plan=PLAN, checks=CHECKS, gpu=asdict(KNOWN["h200"]))


def contents(paths):
    return {p.name: p.read_bytes() if p.suffix == ".png" else p.read_text("utf-8") for p in paths}


def blocks(full_report, kind):
    """Return the blocks of a kind, as the JSON has them."""
    return [b for b in json.loads(full_report["report.json"])["blocks"] if b["block"] == kind]


def table(full_report, title):
    """Return a table of the JSON as a dict a row."""
    found = [t for t in blocks(full_report, "table") if t["title"] == title]
    assert len(found) == 1
    return [dict(zip(found[0]["columns"], row, strict=True)) for row in found[0]["rows"]]


class Page(HTMLParser):
    """Checks the balance of a page and collects what it might load."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.tags, self.loads, self.ids = [], [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.split(":")[-1] in ("href", "src", "srcset", "data", "action"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page(report):
    parser = Page()
    parser.feed(report["report.html"])
    return parser
