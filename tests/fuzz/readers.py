"""Every reader of files that somebody else may have written, with good files to begin with.

A reader is given a folder in which one file is not what it was; it returns, or raises a
FerrumError. What it reads goes on as far as a command takes it.
"""

import hashlib
import json
import sqlite3
import struct
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import gptq_layers as build
import mutating
import numpy as np
from result_rows import json_row, make_environment, make_row
from safetensors.numpy import save_file
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import gpu, results, shipped
from ferrum_numba.compile import cache, recipe
from ferrum_numba.contract import Parameter
from ferrum_numba.errors import FerrumError
from ferrum_numba.export import folder as export_folder
from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.files import INDEX
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.results import decisions, targets
from ferrum_numba.results.file import plain
from ferrum_numba.results.merging import merge_decisions
from ferrum_numba.results.store import Store
from ferrum_numba.tune import planned, t4

GPU = KNOWN["h200"]
CONFIG = {
    "bits": 4, "group_size": 32, "quant_method": "gptq", "sym": False, "desc_act": False,
    "dynamic": {"-:.*gate$": {}, r"+:a\.\d+$": {"bits": 4, "group_size": 32}}, "lm_head": False,
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["re:.*head"],
    "config_groups": {"group_0": {
        "targets": ["Linear", "re:a.*"], "input_activations": None,
        "weights": {"num_bits": 4, "group_size": 32, "symmetric": True, "strategy": "group"},
    }},
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader: what makes its files, which of them are mutated and how, and what reads them."""

    make: object
    read: object
    mutated: dict


def in_bytes(rng, data):
    return mutating.of_bytes(rng, data)


def json_file(rng, data):
    """Mutate a file of JSON: its structure mostly, its text now and then."""
    return mutating.of_json(rng, data) if rng.randrange(5) else mutating.of_bytes(rng, data)


def checkpoint(folder):
    rng = np.random.default_rng(0)
    layers = {
        name: build.make(rng, 64, 64, 32, act_order=True).gptq() for name in ("a.0", "b.q_proj")
    }
    build.write(folder, layers, CONFIG)
    section = {"model_type": "x", "quantization_config": CONFIG, "text_config": {"vocab_size": 8}}
    (folder / "config.json").write_text(json.dumps(section))


def compressed(folder):
    rng = np.random.default_rng(0)
    layer = build.make(rng, 64, 64, 32, sym=True).compressed()
    save_file({f"a.{part}": array for part, array in layer.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": COMPRESSED}))


def stacked(folder):
    rng = np.random.default_rng(0)
    layer = build.make(rng, 64, 64, 32).gptq()
    stack = {f"e.up.{part}": np.stack([array] * 3) for part, array in layer.items()}
    save_file(stack, folder / "model.safetensors")
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))


def sharded(folder):
    rng = np.random.default_rng(0)
    layer = build.make(rng, 32, 32, 32).gptq()
    build.write_sharded(
        folder, {f"{i}.safetensors": {f"e.{i}.up": layer} for i in range(3)}, {"group_size": 32}
    )


def open_checkpoint(folder):
    with GptqCheckpoint.open(folder) as opened:
        names = [info.name for info in opened.layers() if info.error is None]
        for name in names[:4]:
            if opened.layers()[0].experts is None:
                opened.linear(name)
        _ = opened.other_names
        # there may be none
        for prefix in ("e.{e}", "e.{p}"):
            with suppress(FerrumError):
                list(opened.experts(prefix, ["up"]))


def header(rng, data):
    """Mutate a safetensors file: its header's structure, its header's text, or its bytes."""
    size = int.from_bytes(data[:8], "little")
    what = rng.randrange(4)
    if what == 0:
        return mutating.of_bytes(rng, data)
    text = data[8 : 8 + size].strip()
    text = mutating.of_json(rng, text) if what < 3 else mutating.of_bytes(rng, text)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def patterns(folder):
    (folder / "pattern").write_bytes(b"")


def read_pattern(folder):
    text = (folder / "pattern").read_text()
    for config in ({"dynamic": {text: {}}}, {"extra_config": {text: {"bits": 16}}}):
        found = GptqConfig.parse(config)
        for name in ("model.layers.0.mlp.experts.11.gate_proj", "a" * 40 + "b", ""):
            found.rule(name)


def result_file(folder):
    rows = [json_row(M=m, run="2026-01-01") for m in (1, 2)]
    rows[0] |= {"throttle": ["power cap"], "clock_mhz": [1980.0], "power_w": 300.0, "calls": 4}
    rows[1] |= {"peer": "p", "kind": "4-bit", "counters": {"dram_bytes": 1.0}}
    last, first = (plain(make_environment(f"2026-01-0{i}")) for i in (2, 1))
    (folder / "a.json").write_text(
        json.dumps({"schema": 1, "environment": last, "earlier": [first], "rows": rows})
    )


def read_results(folder):
    file = results.load(folder / "a.json")
    results.winners(file.rows)
    results.decide(file.rows)
    merge_decisions([file])
    gpu.find(str(folder / "a.json"))
    results.save(folder / "again.json", results.merge(file, file))


def decision_file(folder):
    found = decisions.load_decisions(shipped.decisions_path("h200"))
    some = [one for one in found if one.kernel == "decode"][:3]
    decisions.save_decisions(folder / "d.json", {"gpu": "h200"}, some)


def read_decisions(folder):
    found = decisions.load_decisions(folder / "d.json")
    decisions.choose(found, W4A16Problem(16, 4096, 4096), [Decode()], GPU)


def plan(folder):
    names = [cache.digest(cache.key({"program": f"f{speed}"})) for speed in (1, 2)]
    for speed in (1, 2):
        cache.keep(folder / planned.PROGRAMS, planned.program_key(f"f{speed}"), make_binary())
    rows = [
        results.Planned(
            "toy", "toy", {"M": 1}, {"speed": speed}, "sm_90a", 32, 0, 0, 2, 1.0, 1.0, 1.0, "ok", ""
        )
        for speed in (1, 2)
    ]  # fmt: skip
    planned.write(folder, [Toy()], GPU, rows, names, facts={"cuda": [13, 0]})


def manifest(rng, data):
    """Mutate a plan's manifest, and give it its digest."""
    changed = json_file(rng, data)
    try:
        found = json.loads(changed)
        if isinstance(found, dict) and rng.randrange(8):
            found["digest"] = planned._digest(found)
            return json.dumps(found).encode()
    except (ValueError, RecursionError):
        pass
    return changed


def read_plan(folder):
    found = planned.Plan.read(folder, [Toy()])
    found.refuse(GPU)
    _ = found.problems, found.estimates, found.binaries


def entry(folder):
    binary = make_binary(smem_bytes=4)
    known = SimpleNamespace(**{**asdict(binary), "parameters": (Parameter("x", "pointer"),)})
    facts = {k: v for k, v in asdict(binary).items() if k not in ("cubin", "ptx")}
    facts["parameters"] = [[p.name, p.kind] for p in known.parameters]
    head = {"key": "k", "cubin_bytes": 3, "facts": facts}
    write_entry(folder / f"{cache.digest('k')}.cubin", json.dumps(head).encode(), b"abcptx")


def write_entry(path, head, payload):
    body = head + b"\n" + payload
    path.write_bytes(f"{cache.MAGIC} {hashlib.sha256(body).hexdigest()}\n".encode() + body)


def cubin(rng, data):
    """Mutate a cache entry: what its digest is of, mostly."""
    if rng.randrange(6) == 0:
        return mutating.of_bytes(rng, data)
    _, head, payload = data.split(b"\n", 2)
    if rng.randrange(4):
        head = mutating.of_json(rng, head)
    else:
        payload = mutating.of_bytes(rng, payload)
    body = head + b"\n" + payload
    return f"{cache.MAGIC} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def read_entry(folder):
    found = cache.read(folder, cache.digest("k"))
    if found is not None:
        assert isinstance(found.registers, int)
        assert all(isinstance(one, Parameter) for one in found.parameters)


RECIPE = {"kernel": "ferrum_numba.kernels.x.X", "config": {"tile_m": 16}, "arch": "sm_90a"}


def recipes(folder):
    cache.keep(folder, "k", make_binary())
    made = recipe.keep(
        folder, RECIPE, cache.digest("k"), {"gpu.py": "0" * 64}, toolchain={"numba": "1"}, cuda=13
    )
    made.rename(folder / "recipe.json")


def read_recipe(folder):
    (folder / "recipe.json").replace(recipe.path(folder, RECIPE))
    recipe.find(folder, RECIPE)


def t4_file(folder):
    rows = [make_row(kernel="toy", op="toy", problem={"M": 1}, config={"speed": 1})]
    (folder / "t4.json").write_text(json.dumps(t4.to_t4(rows, make_environment())))


def read_t4(folder):
    rows, facts = t4.read(folder / "t4.json", [Toy()], [Problem(1)])
    [row.to_json() for row in rows]
    if facts:
        gpu.Gpu(**facts)


def target_file(folder):
    (folder / "t.toml").write_bytes(shipped.targets_path().read_bytes())


def read_targets(folder):
    found = targets.load_targets(folder / "t.toml")
    [one.text for one in targets.evaluate(found, [make_row()])]


def exported(folder):
    (folder / "x.cubin").write_bytes(b"x")
    record = {"file": "x.cubin", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    head = {"schema": 1, "made_by": "ferrum-numba 1", "entries": [{**record, "vectors": [record]}]}
    (folder / export_folder.MANIFEST).write_text(json.dumps(head))
    (folder / export_folder.DISPATCH).write_text(json.dumps({"schema": 1, "rules": []}))


def read_export(folder):
    export_folder.load(folder)
    export_folder.refuse_target(folder)


def store(folder):
    with Store(folder / "tuning.sqlite") as opened:
        opened.add([make_row(), make_row(M=2)], make_environment())
    # of one file: the log is written back when the last one closes it


def database(rng, data):
    """Mutate a database: its bytes, or what a column holds."""
    if rng.randrange(3) == 0:
        return mutating.of_bytes(rng, data)
    table, column = rng.choice([("rows", "content"), ("runs", "environment"), ("rows", "board")])
    with closing(sqlite3.connect(":memory:")) as opened:
        # as it is without a log: what lies in memory has none
        opened.deserialize(data[:18] + b"\1\1" + data[20:])
        (text,) = opened.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        if column == "board":
            value = rng.choice([None, 1, "", b"x", "x"])
        else:
            value = json_file(rng, text.encode())
            value = value.decode(errors="replace") if rng.randrange(20) else value
        with suppress(sqlite3.Error):
            opened.execute(f"UPDATE {table} SET {column} = ?", (value,))
        opened.commit()
        return opened.serialize()


def read_store(folder):
    with Store(folder / "tuning.sqlite") as opened:
        opened.runs()
        opened.rows("w4a16_gemm")
        opened.known(make_row(), make_environment())
        opened.why_miss(make_row(), make_environment())


MODEL, QUANT = "model.safetensors", "quantize_config.json"
READERS = {
    "safetensors": Reader(checkpoint, open_checkpoint, {MODEL: header}),
    "stacks": Reader(stacked, open_checkpoint, {MODEL: header}),
    "config": Reader(checkpoint, open_checkpoint, {QUANT: json_file, "config.json": json_file}),
    "compressed": Reader(compressed, open_checkpoint, {"config.json": json_file, MODEL: header}),
    "index": Reader(sharded, open_checkpoint, {INDEX: json_file}),
    "patterns": Reader(
        patterns, read_pattern, {"pattern": lambda rng, _: mutating.pattern(rng).encode()}
    ),
    "results": Reader(result_file, read_results, {"a.json": json_file}),
    "decisions": Reader(decision_file, read_decisions, {"d.json": json_file}),
    "plan": Reader(plan, read_plan, {planned.MANIFEST: manifest}),
    "cubin": Reader(entry, read_entry, {f"{cache.digest('k')}.cubin": cubin}),
    "recipe": Reader(recipes, read_recipe, {"recipe.json": json_file}),
    "t4": Reader(t4_file, read_t4, {"t4.json": json_file}),
    "targets": Reader(target_file, read_targets, {"t.toml": in_bytes}),
    "export": Reader(exported, read_export, {export_folder.MANIFEST: json_file}),
    "store": Reader(store, read_store, {"tuning.sqlite": database}),
}


def files_of(reader, folder):
    """Return a reader's good files, by name."""
    folder.mkdir()
    reader.make(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }
