"""The cache never serves a wrong cubin: whatever decides the code is in its key."""

import importlib
import os
import subprocess
import sys
import types as python_types
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir
from numba import cuda, types, uint32
from numba.cuda.extending import intrinsic
from toy_builds import Config, Toy, clustered, scaled

from ferrum_numba.compile import build, cache, function_fingerprint, link
from ferrum_numba.compile.fingerprint import Unknown
from ferrum_numba.contract import Kernel, Program, pointers, sizes
from ferrum_numba.ptx.instruction import S32, U32, instruction

build_module = importlib.import_module("ferrum_numba.compile.compiler")


def kernel(source, **names):
    """Return the function `kernel` of a source text whose globals are `names`."""
    exec(source, names)
    return names["kernel"]


def differ(first, second):
    return function_fingerprint(first) != function_fingerprint(second)


def add(constant):
    @cuda.jit(device=True, inline="always")
    def helper(x):
        return uint32(x + uint32(constant))

    return helper


def move(template, result=U32, name="move"):
    def twin(a: U32): ...

    twin.__annotations__["return"] = result
    return instruction(template, name=name)(twin)


def emitter(value):
    @intrinsic
    def emit(typingctx):
        def codegen(context, builder, signature, args):
            return ir.Constant(ir.IntType(32), value)

        return types.uint32(), codegen

    return emit


def jitted(**options):
    @cuda.jit(device=True, **options)
    def helper(x):
        return x

    return helper


def module(**attributes):
    made = python_types.ModuleType("made")
    vars(made).update(attributes)
    return made


@dataclass(frozen=True)
class Layout:
    rows: int


Pair = namedtuple("Pair", "a b")
CALL = "def kernel(out, n):\n    out(value(n))"
READ = "def kernel(out, n):\n    out(n + value)"
ATTRIBUTE = "def kernel(out, n):\n    out(value.inner.step(n))"

# what changed -> the two values that a kernel refers to as `value`, and how
REFERENCES = {
    "int": (1, 2, READ),
    "int and bool": (1, True, READ),
    "int and float": (1, 1.0, READ),
    "signs of zero": (0.0, -0.0, READ),
    "text": ("a", "b", READ),
    "tuple": ((1, (2, 3)), (1, (2, 4)), READ),
    "tuple nesting": (((1,), 2), ((1, 2),), READ),
    "named tuple": (Pair(1, 2), Pair(1, 3), READ),
    "record": (Layout(1), Layout(2), READ),
    "array": (np.arange(4), np.arange(4) + 1, READ),
    "array type": (np.zeros(4, np.int32), np.zeros(4, np.float32), READ),
    "numpy scalar": (np.float32(0.1), np.float64(0.1), READ),
    "numba type": (types.uint32, types.int32, CALL),
    "helper": (add(1), add(2), CALL),
    "helper's options": (jitted(inline="always"), jitted(inline="never"), CALL),
    "template": (move("mov.b32 <d>, <a>;"), move("not.b32 <d>, <a>;"), CALL),
    "result type": (move("mov.b32 <d>, <a>;"), move("mov.b32 <d>, <a>;", S32), CALL),
    "intrinsic": (emitter(1), emitter(2), CALL),
    "module": (
        module(inner=module(step=add(1))), module(inner=module(step=add(2))), ATTRIBUTE,
    ),
    "builtin": (min, max, CALL),
}  # fmt: skip


@pytest.mark.parametrize(("first", "second", "source"), REFERENCES.values(), ids=REFERENCES)
def test_a_changed_global_is_seen(first, second, source):
    assert differ(kernel(source, value=first), kernel(source, value=second))
    assert not differ(kernel(source, value=first), kernel(source, value=first))


@pytest.mark.parametrize(("first", "second", "source"), REFERENCES.values(), ids=REFERENCES)
def test_a_changed_closure_cell_is_seen(first, second, source):
    inner = source.replace("\n", "\n    ")
    factory = f"def make(value):\n    {inner}\n    return kernel\nkernel = make(given)"
    assert differ(kernel(factory, given=first), kernel(factory, given=second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("n + 1", "n + 2"),
        ("n + 1", "n - 1"),
        ("n + 1", "n + 1.0"),
        ("(1, 2)[n]", "(1, 3)[n]"),
        ("cuda.threadIdx.x", "cuda.threadIdx.y"),
        ("(lambda x: x + 1)(n)", "(lambda x: x + 2)(n)"),
    ],
)
def test_a_changed_body_is_seen(first, second):
    source = "def kernel(out, n):\n    out({})"
    assert differ(kernel(source.format(first), cuda=cuda), kernel(source.format(second), cuda=cuda))


def test_a_changed_default_is_seen():
    assert differ(kernel("def kernel(n=1): n"), kernel("def kernel(n=2): n"))


def test_a_helper_of_a_helper_is_seen():
    def outer(inner):
        @cuda.jit(device=True)
        def helper(x):
            return inner(x)

        return helper

    assert differ(kernel(CALL, value=outer(add(1))), kernel(CALL, value=outer(add(2))))


def test_comments_and_line_numbers_are_no_change():
    body = "\n\n# here\ndef kernel(out, n):\n    # there\n\n    out(n)"
    assert not differ(kernel("def kernel(out, n):\n    out(n)"), kernel(body))


def test_running_a_function_is_no_change():
    run = kernel("def kernel(out, n):\n    for i in range(n):\n        out(i + n)")
    before = function_fingerprint(run)
    for _ in range(100):
        run(lambda i: None, 100)
    assert function_fingerprint(run) == before


def test_a_recursive_helper_ends():
    names = {"cuda": cuda}
    exec("@cuda.jit(device=True)\ndef inner(n):\n    return inner(n)", names)
    assert len(function_fingerprint(kernel("def kernel(n): inner(n)", **names))) == 64


def test_another_process_agrees():
    code = "from toy_builds import *; from ferrum_numba.compile import function_fingerprint as f; "
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code + "print(f(scaled(3)))"],
        cwd=Path(sys.modules[Toy.__module__].__file__).parent, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == function_fingerprint(scaled(3))


@pytest.mark.parametrize(
    "value", [object(), [1, 2], {"a": 1}, Layout, lambda x: x, module(a=1)],
    ids=["object", "list", "dict", "class", "plain function", "whole module"],
)  # fmt: skip
def test_what_is_not_understood_is_refused(value):
    with pytest.raises(Unknown, match=r"a kernel refers to .*, which has no fingerprint"):
        function_fingerprint(kernel(READ, value=value))


def test_saying_that_it_comes_from_numba_is_not_enough():
    names = {"__name__": "numba.cuda", "intrinsic": intrinsic, "unknown": object()}
    exec("@intrinsic\ndef made(typingctx): return unknown", names)
    assert names["made"].__module__ == "numba.cuda"
    with pytest.raises(Unknown):
        function_fingerprint(kernel(CALL, value=names["made"]))


class Given(Kernel):
    """Builds the program that is its config."""

    name = "given"
    configs = refuses = prepare = launch = None

    def build(self, config, arch):
        return config


PROGRAM = Program(clustered, pointers("out") + sizes("n"), 128)


@pytest.fixture(scope="module")
def binary():
    return build_module.build_program(PROGRAM, "sm_90a")


@pytest.fixture
def compiled(monkeypatch, tmp_path, binary):
    """Return the list of programs that were really built; what is built is always the same."""
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    built = []

    def note(program, arch, entry):
        built.append(program)
        return binary

    monkeypatch.setattr(build_module, "build_program", note)
    return built


CHANGES = {
    "function": replace(PROGRAM, function=scaled(3)),
    "parameter": replace(PROGRAM, parameters=pointers("out", "n")),
    "threads": replace(PROGRAM, num_threads=256),
    "blocks": replace(PROGRAM, min_blocks_per_sm=2),
    "shared memory": replace(PROGRAM, smem_bytes=1024),
    "cluster": replace(PROGRAM, cluster=(2, 1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_program_is_built(compiled, change):
    build(Given(), PROGRAM, "sm_90a")
    build(Given(), PROGRAM, "sm_90a")
    assert compiled == [PROGRAM]
    build(Given(), change, "sm_90a")
    assert compiled == [PROGRAM, change]


def test_another_architecture_or_name_is_built(compiled):
    build(Given(), PROGRAM, "sm_90a")
    build(Given(), PROGRAM, "sm_90")
    renamed = Given()
    renamed.name = "other"
    build(renamed, PROGRAM, "sm_90a")
    assert len(compiled) == 3


def test_another_option_or_compiler_is_built(compiled, monkeypatch):
    build(Given(), PROGRAM, "sm_90a")
    monkeypatch.setattr(link, "OPTIONS", ["-O0", "-verbose"])
    build(Given(), PROGRAM, "sm_90a")
    for tool in build_module.toolchain():
        changed = {**build_module.toolchain(), tool: "another"}
        with monkeypatch.context() as patch:
            patch.setattr(build_module, "toolchain", lambda changed=changed: changed)
            build(Given(), PROGRAM, "sm_90a")
    assert len(compiled) == 2 + len(build_module.toolchain())


def test_the_toolchain_names_every_part():
    parts = build_module.toolchain()
    assert {"numba", "numba-cuda", "llvmlite", "nvvm", "libdevice", "nvjitlink", "source"} <= (
        parts.keys()
    )
    assert all(parts.values())


def test_a_kernel_without_fingerprint_is_built_every_time(compiled):
    unknown = replace(PROGRAM, function=kernel(READ, value=object()))
    build(Given(), unknown, "sm_90a")
    build(Given(), unknown, "sm_90a")
    assert compiled == [unknown, unknown]


def test_the_cache_can_be_passed_by(compiled, tmp_path):
    build(Given(), PROGRAM, "sm_90a", use_cache=False)
    assert list(tmp_path.iterdir()) == []
    build(Given(), PROGRAM, "sm_90a")
    build(Given(), PROGRAM, "sm_90a", use_cache=False)
    assert len(compiled) == 3


def test_what_is_stored_comes_back(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    built = {n: build(Toy(), Config(n), "sm_90a", use_cache=False) for n in (3, 4)}
    for factor in (3, 4, 3, 4):
        binary = build(Toy(), Config(factor), "sm_90a")
        assert replace(binary, build_s=0) == replace(built[factor], build_s=0)
        assert binary == build(Toy(), Config(factor), "sm_90a")
    assert len(list(tmp_path.iterdir())) == 2


def flip(position):
    def damage(data):
        at = int(position * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "text": lambda data: b"not a cache entry\n" * 9,
    **{f"a bit at {p}": flip(p) for p in (0, 0.01, 0.05, 0.2, 0.5, 0.9, 1)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_built_anew(compiled, tmp_path, damage):
    first = build(Given(), PROGRAM, "sm_90a")
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    assert build(Given(), PROGRAM, "sm_90a") == first
    assert len(compiled) == 2
    assert path.read_bytes() == sound


def test_an_entry_under_another_name_is_not_taken(compiled, tmp_path):
    build(Given(), PROGRAM, "sm_90a")
    (path,) = tmp_path.iterdir()
    build(Given(), CHANGES["threads"], "sm_90a")
    (other,) = set(tmp_path.iterdir()) - {path}
    path.replace(other)
    build(Given(), CHANGES["threads"], "sm_90a")
    assert len(compiled) == 3


def test_a_folder_that_cannot_be_written_to_is_no_error(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "file"))
    build(Given(), PROGRAM, "sm_90a")
    build(Given(), PROGRAM, "sm_90a")
    assert len(compiled) == 2


def test_the_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("FERRUM_NUMBA_CACHE_DIR")
    assert cache.directory().name == "ferrum-numba"
