"""Where a program comes from: shipped with the package, compiled before, or compiled now."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from ferrum_numba import shipped
from ferrum_numba.compile import cache, recipe
from ferrum_numba.compile.binary import Binary
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import ToolchainError
from ferrum_numba.gpu import driver_cuda

# drivers of an older CUDA need a compiler of that
NEWEST_CUDA = 13


def build(kernel: Kernel, config: Config, arch: str, *, use_cache: bool = True) -> Binary:
    """Return the program of one config of a kernel: shipped, from the disk cache, or compiled.

    use_cache: False compiles it in any case

    Raises:
        BuildError:     it does not compile; the compiler's words are in the message
        ToolchainError: it must be compiled, and no kernel compiles here
        ConfigError:    from the kernel, for a config that contradicts itself
    """
    found = recipe.recipe_of(kernel.made_by, config, arch) if use_cache else None
    if found is None:
        return _compiled(kernel, config, arch, use_cache, "")
    binary = _shipped(found)
    if isinstance(binary, str):
        reason, binary = binary, recipe.find(cache.directory(), found)
        if isinstance(binary, str):
            absent = f", and {_not_shipped(kernel.name, arch, reason)}"
            binary = _compiled(kernel, config, arch, use_cache, absent)
            _remember(found, binary)
    return binary


def available(kernel: Kernel, config: Config, arch: str) -> Literal["shipped", "cache"] | None:
    """Return where the program of one config is to be had without a compiler, or None."""
    found = recipe.recipe_of(kernel.made_by, config, arch)
    if found is None:
        return None
    if isinstance(_shipped(found), Binary):
        return "shipped"
    return "cache" if isinstance(recipe.find(cache.directory(), found), Binary) else None


def program_fingerprint(kernel: Kernel, config: Config, arch: str) -> str | None:
    """Return what a config's binary will be known by, None if its program cannot be known.

    Configs that differ only in how they are launched have the same.

    Raises:
        ToolchainError: no kernel compiles here
    """
    fingerprint: str | None = need_compiler().program_fingerprint(kernel, config, arch)
    return fingerprint


def need_compiler(absent: str = "") -> ModuleType:
    """Return the compiler, importing it now.

    absent: why something had to be compiled, for the error

    Raises:
        ToolchainError: it is not installed
    """
    try:
        from ferrum_numba.compile import compiler as module
    except ModuleNotFoundError as error:
        what = f"the package {error.name} is not installed{absent}"
        raise ToolchainError(what, f"pip install 'ferrum-numba[{_extra()}]'") from error
    return module


def _shipped(wanted: Mapping[str, Any]) -> Binary | str:
    """Return the binary that ships for a recipe, or in words why there is none."""
    found = recipe.find(shipped.programs_folder(wanted["arch"]), wanted)
    if found == recipe.DAMAGED:
        name = wanted["kernel"].rpartition(".")[2]
        warnings.warn(
            f"a program of {name} that ships with ferrum-numba is damaged and not used: "
            "install ferrum-numba anew", RuntimeWarning, stacklevel=3,
        )  # fmt: skip
    return found


def _not_shipped(name: str, arch: str, reason: str) -> str:
    if reason == recipe.ABSENT:
        return f"no {name} of this config ships for {arch}"
    return f"the {name} that ships for {arch} is not used: {reason}"


def _compiled(kernel: Kernel, config: Config, arch: str, use_cache: bool, absent: str) -> Binary:
    binary: Binary = need_compiler(absent).build(kernel, config, arch, use_cache=use_cache)
    return binary


def _remember(found: Mapping[str, Any], binary: Binary) -> None:
    # what cannot be fingerprinted, or stored, is in no cache
    if cache.path(cache.directory(), binary.fingerprint).exists():
        recipe.remember(found, binary.fingerprint, need_compiler().toolchain())


def _extra() -> str:
    """Return the extra that brings a compiler for the driver here."""
    newest = driver_cuda()
    return "cu12" if newest is not None and newest[0] < NEWEST_CUDA else "compile"
