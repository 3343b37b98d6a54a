"""A case: one tiny kernel around an instruction, run by the interpreter, the compiler and a GPU.

Tables are the files `ptx_cases_*.py`, each with a tuple CASES; test_ptx_cases.py finds them, runs
all of their cases and asserts that they cover the whole vocabulary.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Launch, Program, pointers
from ferrum_numba.ptx.instruction import Instruction

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One tiny kernel whose parameters are pointers to the inputs, in order, and to `out`.

    name:         readable id
    instructions: what it covers; each must be found in its PTX
    function:     the kernel
    inputs:       rng -> arrays by parameter name
    want:         inputs -> the exact contents of `out`, computed another way than by the twin
    bound:        inputs -> largest legal |got - want|; None asks for equal bits (NaN equals NaN)
    """

    name: str
    instructions: tuple[Instruction, ...]
    function: Callable[..., None]
    inputs: Callable[[np.random.Generator], Inputs]
    want: Callable[[Inputs], np.ndarray]
    bound: Callable[[Inputs], np.ndarray] | None = None
    num_threads: int = 32
    num_blocks: int = 1
    smem_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)

    def __str__(self) -> str:
        return self.name

    @property
    def arch(self) -> str:
        """The first architecture that has all of the instructions."""
        return max((i.arch for i in self.instructions), key=arch_order)

    def runs_on(self, arch: str) -> bool:
        """Return whether a GPU of this architecture has the instructions."""
        if self.arch[-1].isalpha():
            return arch == self.arch
        return arch_order(arch) >= arch_order(self.arch)

    def program(self) -> Program:
        """Return the program of the kernel."""
        names = (*self.inputs(np.random.default_rng(0)), "out")
        return Program(
            self.function,
            pointers(*names),
            self.num_threads,
            smem_bytes=self.smem_bytes,
            cluster=self.cluster,
        )

    def launch(self) -> Launch:
        """Return how the kernel is launched."""
        return Launch((self.num_blocks, 1, 1), {})


def arch_order(arch: str) -> tuple[int, str]:
    """Return a key that sorts sm_80 < sm_90 < sm_90a < sm_120."""
    number, suffix = re.fullmatch(r"sm_(\d+)(\w?)", arch).groups()
    return int(number), suffix


def opcodes(instruction: Instruction) -> list[str]:
    """Return the PTX opcodes with a modifier that an instruction's template names."""
    text = re.sub(r"<[\w.]+>", "", instruction.template)
    return re.findall(r"(?<![.\w])[a-z]\w*(?:(?:\.|::)\w+)+", text)


def buffers(case: Case, rng: np.random.Generator) -> tuple[Inputs, np.ndarray]:
    """Return the inputs and an output of the right form that no result looks like."""
    inputs = case.inputs(rng)
    out = np.ascontiguousarray(np.empty_like(case.want(inputs)))
    out.view(np.uint8)[...] = 0xA5
    return inputs, out


def on_interpreter(case: Case, seed: int) -> np.ndarray:
    """Return what the interpreter writes to `out`."""
    from ferrum_numba import interpreter

    inputs, out = buffers(case, np.random.default_rng(seed))
    interpreter.run(case.program(), case.launch(), {**inputs, "out": out})
    return out


def on_gpu(case: Case, seed: int, device) -> np.ndarray:
    """Return what the GPU writes to `out`."""
    from ferrum_numba.compile import build_program
    from ferrum_numba.launch import Buffer, load

    inputs, out = buffers(case, np.random.default_rng(seed))
    held = {name: Buffer.from_array(device, array) for name, array in inputs.items()}
    held["out"] = Buffer.from_array(device, out)
    kernel = load(build_program(case.program(), device.gpu.arch), device)
    addresses = {name: buffer.pointer for name, buffer in held.items()}
    kernel.prepare(case.launch(), addresses)(device.new_stream())
    device.synchronize()
    return held["out"].read(out.shape, out.dtype)


def assert_agrees(case: Case, got: np.ndarray, want: np.ndarray, seed: int) -> None:
    """Assert equal bits, or a difference within the case's bound; any NaN equals any NaN."""
    if case.bound is None:
        assert_same_bits(got, want)
        return
    bound = case.bound(case.inputs(np.random.default_rng(seed)))
    assert_close(got, want, bound)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Assert equal bits; NaNs of a float array equal each other."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    bits = f"u{got.itemsize}"
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(bits)[~nan], want.view(bits)[~nan])


def assert_close(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> None:
    """Assert that finite elements differ by no more than bound and the others are the same."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    difference = np.abs(got[finite].astype(np.float64) - want[finite])
    wrong = ~(difference <= np.broadcast_to(bound, want.shape)[finite])
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ by up to {difference.max():.3g}"
