"""Types: each line below computes something else in NumPy's types than in those numba infers."""

import numpy as np
import pytest
from ptx_evaluator import evaluate, unfused
from random_kernels import HEADER, INPUT_BYTES, LANES, LAUNCH, program

from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.interpreter import run

F32 = np.float32


def bits(value, dtype=np.uint64):
    return int(np.array(value).view(dtype))


def operands(lane):
    """Fill the inputs of a lane."""
    data = np.zeros(INPUT_BYTES, np.uint8)
    data[:16] = np.array([2**63 + 1, np.uint64(2**64 - 2)], np.uint64).view(np.uint8)
    data[16:32] = np.array([1e300, np.nan]).view(np.uint8)
    data[32:48] = np.array([0xFFFFFFFF, 5, 2**32 - 7, lane], np.uint32).view(np.uint8)
    data[48:56] = np.array([3.0, np.nan], F32).view(np.uint8)
    data[56:60] = np.array([65535], np.uint32).view(np.uint8)
    return data


# L0 = 2**63 + 1 (uint64), L1 = -2 (int64), D0 = 1e300, D1 = NaN, U0 = 2**32 - 1, U1 = 5 (uint32),
# I0 = -7, I1 = lane (int32), F0 = 3, F1 = NaN (float32), H0 = 65535 (uint16)
CASES = {
    "a shift of uint32 is 64 bits wide": (
        "st_u64(out, uint32((U0 << uint32(8)) >> uint32(8)))", 0xFFFFFFFF,
    ),
    "a float literal is a double": ("st_f64(out, F0 * 0.1)", bits(3 * 0.1)),
    "a sum of uint32 is 64 bits wide": ("st_u64(out, U0 + U0)", 2 * 0xFFFFFFFF),
    "int32 and uint32 make an int64": ("st_u64(out, I0 + U0)", 2**32 - 8),
    "uint64 and int64 make an int64": ("st_u64(out, (L0 - L1) >> 1)", (3 - 2**63) // 2 + 2**64),
    "uint64 and int64 compare as doubles": ("st_u64(out, uint64(L0 <= int64(L0 - uint64(2))))", 1),
    "int32 and uint32 compare as int64": ("st_u64(out, uint64(I0 < U1))", 1),
    "an int by a float32 is a double": ("st_f64(out, U0 * F0)", bits(3.0 * 0xFFFFFFFF)),
    "integers divide to a double": ("st_f64(out, U1 / U0)", bits(5 / 0xFFFFFFFF)),
    "the quotient of a negative is its floor": ("st_u64(out, I0 // 2)", 2**64 - 4),
    "the remainder has the sign of the divisor": ("st_u64(out, I0 % 5)", 3),
    "the least int64 by -1 is 0": (
        "st_u64(out, (int64(L0) - 1) // (L1 + 1))", 0,
    ),
    "a minus stays unsigned, in 32 bits": ("st_u64(out, -U1)", 2**32 - 5),
    "an inversion stays in 32 bits": ("st_u64(out, ~U1)", 2**32 - 6),
    "bools add up": ("st_u64(out, (U0 > U1) + (I0 < I1))", 2),
    "a shift beyond 32 bits": ("st_u64(out, U1 << 33)", 5 << 33),
    "out of the range of an int32": ("st_u64(out, uint32(int32(D0)))", 2**31 - 1),
    "below the range of a uint32": ("st_u64(out, uint32(-D0))", 0),
    "NaN in 32 and in 64 bits": ("st_u64(out, int64(F1) + int32(F1))", 2**63),
    "a uint64 is rounded to float32 once": (
        "st_global_f32(out, float32(L0 >> uint64(7)))", bits(F32(2.0**56), np.uint32),
    ),
    "min of two float32 prefers a number": ("st_global_f32(out, min(F1, F0))", 0x40400000),
    "min of an int and a float is the first, where neither is less": (
        "st_f64(out, min(D0 * 0.0 + I0, U1) + min(U1, D1))", bits(-2.0),
    ),
    "a power of integers passes through a double": (
        "st_u64(out, (int64(L0 >> uint64(2)) + 1) ** 1)", 2**61,
    ),
    "a variable of two branches is a double in both": (
        "t = F0\nif U1 > uint32(9):\n    t = 0.5\nst_f64(out, t * (F0 / float32(9)))",
        bits(3.0 * float(F32(3) / F32(9))),
    ),
    "a variable of a loop is what its body makes of it": (
        "t = U0\nfor i in range(2):\n    t += U0\nst_u64(out, t)", 3 * 0xFFFFFFFF,
    ),
    "a counter from 0 becomes an int64": (
        "t = 0\nk = uint32(0)\nwhile k < uint32(3):\n    t = t + I0\n    k += uint32(1)\n"
        "st_u64(out, t >> 1)",
        2**64 - 11,
    ),
    "what a loop leaves by a break": (
        "t = F0\nk = uint32(0)\nwhile k < U1:\n    if k > uint32(2):\n        t = t * 0.1\n"
        "        break\n    k += uint32(1)\nst_f64(out, t)",
        bits(3 * 0.1),
    ),
    "a chain compares each pair in its own types": (
        "st_u64(out, uint64(I0 < U1 + U1 < U0 / 0.5))", 1,
    ),
    "a branch on literals gives a variable no type": (
        "t = D0 if 31 == -3.75 else U0\nst_u64(out, t * t)", (2**32 - 1) ** 2 % 2**64,
    ),
    "an array keeps its own type": (
        "a = cuda.local.array(2, uint32)\na[0] = U0\na[0] += U0\na[1] = a[0] >> uint32(1)\n"
        "st_u64(out, a[1])",
        0x7FFFFFFF,
    ),
    "a tuple keeps the types of its elements": (
        "a, b = (U0, F0)\nst_f64(out, (a + a) * b)", bits(2.0 * 0xFFFFFFFF * 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_line_computes_what_numba_compiles_of_it(tmp_path, name):
    body, want = CASES[name]
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = HEADER.format(input_bytes=INPUT_BYTES, output_bytes=8) + lines
    made = program(text, tmp_path, "typed_kernel")
    x, out = np.array([operands(lane) for lane in range(LANES)]), np.zeros(LANES, np.uint64)
    memory = bytearray(x.tobytes() + out.tobytes())
    evaluate(unfused(compile_ptx(made, "sm_90a", "kernel")), memory, [0, x.nbytes], LANES)
    run(made, LAUNCH, {"x": x, "out": out}, unwritten=())
    compiled = np.frombuffer(memory, np.uint64, offset=x.nbytes)
    assert [hex(value) for value in compiled] == [hex(want)] * LANES
    assert [hex(value) for value in out] == [hex(want)] * LANES
