"""Where a program comes from: what ships, the user's cache, the compiler; never another's."""

import json
import os
import sys
from dataclasses import replace

import pytest
from host_driver import binary
from toy_builds import Config as ToyConfig
from toy_builds import Toy

from ferrum_numba.compile import build, cache, lookup, recipe, sources, versions
from ferrum_numba.errors import ToolchainError
from ferrum_numba.kernels.tools.add_bias import PARAMETERS, AddBias, AddBiasConfig

ARCH = "sm_90a"
KERNEL, CONFIG = AddBias(), AddBiasConfig()
RECIPE = recipe.recipe_of(KERNEL, CONFIG, ARCH)
SOURCES = sources.sources_of("ferrum_numba.kernels.tools.add_bias")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Empty folders of what ships and of what was compiled."""
    monkeypatch.setenv("FERRUM_NUMBA_PROGRAMS_DIR", str(tmp_path / "shipped"))
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def compiled(monkeypatch):
    """Return the list of what really was compiled; what is made has the cubin `compiled`."""
    from ferrum_numba.compile import compiler

    built = []

    def note(program, arch, entry):
        built.append((entry, arch))
        return binary(entry, program.parameters, cubin=b"compiled", num_threads=64)

    monkeypatch.setattr(compiler, "build_program", note)
    return built


@pytest.fixture
def no_compiler(monkeypatch):
    """As where numba is not installed."""
    for name in [name for name in sys.modules if name.startswith("ferrum_numba.compile.compiler")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("ferrum_numba.compile.compiler", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)


def put(folder, cubin, *, text="a key", name=None, changes=(), **needs):
    """Write a program and its recipe into a folder, and return the files of both."""
    made = binary("add_bias", PARAMETERS, cubin=cubin)
    digest = cache.digest(text)
    cache.keep(folder, text, replace(made, fingerprint=digest))
    body = {**RECIPE, **dict(changes)}
    path = recipe.keep(folder, RECIPE, name or digest, SOURCES, **needs)
    path.write_text(json.dumps({**json.loads(path.read_text()), **body}))
    return cache.path(folder, digest), path


def ship(cubin=b"shipped", **options):
    return put(lookup.shipped.programs_folder(ARCH), cubin, **options)


def found():
    return build(KERNEL, CONFIG, ARCH).cubin


def test_what_ships_comes_first(compiled):
    put(cache.directory(), b"cached", toolchain={})
    ship()
    assert found() == b"shipped"
    assert compiled == []


def test_then_what_was_compiled_before(compiled):
    assert found() == b"compiled"
    assert compiled == [("add_bias", ARCH)]
    assert found() == b"compiled"
    assert len(compiled) == 1


def test_what_was_compiled_before_needs_no_compiler(compiled, monkeypatch):
    found()
    monkeypatch.setattr(lookup, "need_compiler", lambda absent="": pytest.fail("it was asked"))
    assert found() == b"compiled"


def test_the_compiler_can_be_asked_all_the_same(compiled):
    ship()
    build(KERNEL, CONFIG, ARCH, use_cache=False)
    assert compiled == [("add_bias", ARCH)]
    assert not cache.directory().exists()


@pytest.mark.parametrize(
    ("kernel", "config", "arch"),
    [
        (KERNEL, AddBiasConfig(rows=2), ARCH),
        (KERNEL, AddBiasConfig(dtype="bf16"), ARCH),
        (KERNEL, CONFIG, "sm_90"),
    ],
)
def test_another_config_or_architecture_is_another_program(compiled, kernel, config, arch):
    ship()
    assert build(kernel, config, arch).cubin == b"compiled"


def test_a_kernel_whose_source_is_elsewhere_has_no_recipe(compiled):
    class Mine(AddBias):
        pass

    changed = AddBias()
    changed.name = "mine"
    assert recipe.recipe_of(Toy(), ToyConfig(), ARCH) is None
    assert recipe.recipe_of(Mine(), CONFIG, ARCH) is None
    assert recipe.recipe_of(changed, CONFIG, ARCH) is None


def test_a_kernel_made_of_something_is_known_by_it():
    from ferrum_numba.kernels.ceilings.elements import BF16, FP16
    from ferrum_numba.kernels.ceilings.tensor import MMA_CONFIGS, MmaSync

    made = [recipe.recipe_of(MmaSync(e), MMA_CONFIGS[0], ARCH) for e in (FP16, FP16, BF16)]
    assert made[0] == made[1] != made[2]


def test_a_kernel_that_stands_for_another_has_its_programs(compiled):
    from ferrum_numba.cli.bench import Chosen

    ship()
    assert build(Chosen(KERNEL, {}), CONFIG, ARCH).cubin == b"shipped"


STALE = {"sources": {**SOURCES, "ptx/memory.py": "0" * 64}}
OTHER = {"toolchain": {**versions.versions(), "numba": "0.1"}}
# what is wrong with a program that ships -> why it is not used
UNUSED = {
    "stale": (STALE, "it was made before ptx/memory.py was changed"),
    "a file that is gone": (
        {"sources": {"kernels/gone.py": "0" * 64}},
        "it was made before kernels/gone.py was changed",
    ),
    "another compiler": (OTHER, "it was made by another compiler"),
    "an old driver": ({"cuda": 99}, "it needs a driver of CUDA 99, this one is of CUDA 13"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), UNUSED.values(), ids=UNUSED)
def test_what_does_not_hold_is_compiled(compiled, monkeypatch, changes, reason):
    monkeypatch.setattr(recipe, "driver_cuda", lambda: (13, 0))
    ship(changes=changes.items())
    assert recipe.find(lookup.shipped.programs_folder(ARCH), RECIPE) == reason
    assert found() == b"compiled"


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("changes", "reason"), UNUSED.values(), ids=UNUSED)
def test_without_a_compiler_it_is_said_why(monkeypatch, changes, reason):
    monkeypatch.setattr(recipe, "driver_cuda", lambda: (13, 0))
    ship(changes=changes.items())
    if "another compiler" in reason:
        # there is none, so it is not another
        monkeypatch.setattr(recipe, "unchanged", lambda toolchain: False)
    with pytest.raises(ToolchainError) as raised:
        found()
    assert str(raised.value) == (
        "no kernel compiles here: the package numba is not installed, and the add_bias that ships "
        f"for sm_90a is not used: {reason}; pip install 'ferrum-numba[compile]'"
    )


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("cuda", "extra"), [(None, "compile"), ((13, 0), "compile"),
                                             ((12, 9), "cu12")])  # fmt: skip
def test_without_a_compiler_the_right_one_is_named(monkeypatch, cuda, extra):
    monkeypatch.setattr(lookup, "driver_cuda", lambda: cuda)
    with pytest.raises(ToolchainError) as raised:
        found()
    assert str(raised.value) == (
        "no kernel compiles here: the package numba is not installed, and no add_bias of this "
        f"config ships for sm_90a; pip install 'ferrum-numba[{extra}]'"
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_key(path):
    data = path.read_bytes()
    body = data.partition(b"\n")[2].replace(b"a key", b"b key")
    path.write_bytes(f"{cache._first_line(body)}\n".encode() + body)


def without_sources(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "sources": {}}))


DAMAGE = {
    "a program cut": (0, cut),
    "a program with a bit wrong": (0, flip),
    "a program that is not there": (0, os.unlink),
    "a program of another key": (0, other_key),
    "a recipe cut": (1, cut),
    "a recipe that is no object": (1, lambda path: path.write_text("[]")),
    "a recipe of nothing": (1, lambda path: path.write_text("{}")),
    "a recipe without sources": (
        1, lambda path: path.write_text(json.dumps({**RECIPE, "binary": "x", "sources": None})),
    ),
    "a recipe of no source": (1, without_sources),
    "a recipe of another config": (
        1, lambda path: path.write_text(path.read_text().replace('"rows": 1', '"rows": 8')),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("which", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_never_run(compiled, which, damage):
    damage(ship()[which])
    with pytest.warns(RuntimeWarning, match="AddBias that ships with ferrum-numba is damaged"):
        assert found() == b"compiled"


@pytest.mark.parametrize(("which", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_in_the_users_cache_it_is_made_anew(compiled, which, damage):
    found()
    folder = cache.directory()
    damage(next(folder.glob(("*.cubin", "*.json")[which])))
    assert found() == b"compiled"
    assert isinstance(recipe.find(folder, RECIPE), cache.Binary)


def test_a_recipe_of_edited_source_is_not_written(compiled, monkeypatch):
    monkeypatch.setattr(recipe, "edited", lambda names: True)
    found()
    assert not list(cache.directory().glob("*.json"))


def test_another_compiler_makes_it_anew(compiled, monkeypatch):
    found()
    monkeypatch.setattr(versions, "version", lambda package: "0.1")
    folder = cache.directory()
    assert recipe.find(folder, RECIPE) == "it was made by another compiler"


def test_a_library_that_was_replaced_is_another_compiler(compiled, tmp_path):
    found()
    (path,) = cache.directory().glob("*.json")
    toolchain = json.loads(path.read_text())["toolchain"]
    assert versions.unchanged(toolchain)
    (tmp_path / "nvvm.so").write_text("x")
    identity = versions.identity(str(tmp_path / "nvvm.so"))
    assert versions.unchanged({**toolchain, "nvvm": identity})
    (tmp_path / "nvvm.so").write_text("xx")
    assert not versions.unchanged({**toolchain, "nvvm": identity})
    (tmp_path / "nvvm.so").unlink()
    assert not versions.unchanged({**toolchain, "nvvm": identity})


def test_where_there_is_no_compiler_any_will_do(monkeypatch):
    def missing(package):
        raise versions.PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", missing)
    assert versions.unchanged({"numba": "0.1"})


def test_a_folder_that_cannot_be_written_to_is_no_error(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert found() == b"compiled"
