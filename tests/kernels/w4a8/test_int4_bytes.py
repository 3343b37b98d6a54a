"""Codes to bytes: the text, executed line by line, against plain arithmetic."""

import re

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba.kernels.shared import int4_bytes
from ferrum_numba.kernels.shared.packed_x8 import TABLE_BYTES, interleave
from ferrum_numba.reference.marlin_layout import TILE_K, TILE_N, pack_weight

MASK = 0xFFFFFFFF
TYPES = {"fp8": ml_dtypes.float8_e4m3fn, "int8": np.int8}


class Registers(dict):
    """A lane that executes the few instructions that the text is made of."""

    def value(self, text):
        return int(text, 0) if text[0].isdigit() else self[text]

    def run(self, lines, memory=b""):
        for line in "\n".join(lines).split("\n"):
            statement = line.strip().rstrip(";")
            if statement and not statement.startswith(".reg"):
                opcode, rest = statement.split(None, 1)
                if opcode == "ld.shared.v4.u32":
                    names, address = re.fullmatch(r"\{(.*)\}, \[(\w+)\]", rest).groups()
                    at = self[address]
                    words = np.frombuffer(memory[at : at + 16], np.uint32).tolist()
                    self.update(zip(names.split(", "), words, strict=True))
                    continue
                target, *operands = rest.split(", ")
                self[target] = OPCODES[opcode](*map(self.value, operands)) & MASK


def prmt(a, b, selector):
    data = a | b << 32
    word = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = data >> 8 * (nibble & 7) & 0xFF
        if nibble & 8:
            byte = 0xFF if byte & 0x80 else 0
        word |= byte << 8 * i
    return word


def lop3(a, b, c, table):
    word = 0
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1
        word |= (table >> index & 1) << bit
    return word


OPCODES = {
    "mov.b32": lambda a: a,
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "xor.b32": lambda a, b: a ^ b,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "shl.b32": lambda a, b: a << b,
    "add.u32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "mad.lo.u32": lambda a, b, c: a * b + c,
}


def converted(x_dtype, word, zeros=None, shift=0):
    """Return the values of both registers that a word becomes: [2, 4]."""
    lane = Registers(word=word)
    if zeros is None:
        lane.run(int4_bytes.set_symmetric(x_dtype))
        lane.run(int4_bytes.convert(x_dtype, "word", ("a", "b")))
    else:
        memory = bytes(64) + int4_bytes.sixteen(np.arange(16)).tobytes()
        lane.update(zeros=zeros, tables=64)
        lane.run(int4_bytes.set_zero_points(x_dtype, "zeros", shift, "tables"), memory)
        lane.run(int4_bytes.convert_with_zeros(x_dtype, "word", ("a", "b")))
    registers = np.array([lane["a"], lane["b"]], np.uint32)
    return registers.view(TYPES[x_dtype]).astype(np.float64).reshape(2, 4)


def word_of(codes):
    """Return the word of eight codes by nibble."""
    return sum(int(code) << 4 * i for i, code in enumerate(codes))


@pytest.mark.parametrize("x_dtype", TYPES)
def test_every_code_in_every_place_becomes_itself_less_8(x_dtype):
    order = np.array(int4_bytes.ORDER)
    for first in range(16):
        codes = (first + np.arange(8) * 3) % 16
        want = (codes[order].reshape(2, 4) - 8) * int4_bytes.factor(x_dtype, False)
        np.testing.assert_array_equal(converted(x_dtype, word_of(codes)), want)


@pytest.mark.parametrize("shift", [0, 4, 12])
@pytest.mark.parametrize("x_dtype", TYPES)
def test_every_code_less_every_zero_point(x_dtype, shift):
    order = np.array(int4_bytes.ORDER)
    for zero in range(16):
        other = (5 * zero + 3) % 16
        zeros = (zero | other << 16) << shift | (0x7 << 28 if shift < 12 else 0)
        for first in (0, 5, 8):
            codes = (first + np.arange(8)) % 16
            less = codes[order].reshape(2, 4) - np.array([[zero], [other]])
            want = less * int4_bytes.factor(x_dtype, True)
            np.testing.assert_array_equal(converted(x_dtype, word_of(codes), zeros, shift), want)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("x_dtype", TYPES)
def test_the_twin_is_the_text(rng, x_dtype, zero_points):
    words = rng.integers(0, 2**32, 40, np.uint32)
    zeros = rng.integers(0, 16, (40, 2)) if zero_points else np.full((40, 2), 8)
    got = int4_bytes.operand_bytes(words, zeros, x_dtype, zero_points)
    for word, (low, high), registers in zip(words.tolist(), zeros.tolist(), got, strict=True):
        want = converted(x_dtype, word, low | high << 16 if zero_points else None)
        values = registers.view(TYPES[x_dtype]).astype(np.float64).reshape(2, 4)
        np.testing.assert_array_equal(values, want)


def test_slots_of_a_tile_are_those_of_interleaved_rows(rng):
    """A lane's bytes and four slots of interleaved k meet at the same k of the tile."""
    codes = rng.integers(0, 16, (TILE_K, TILE_N), np.uint8)
    words = pack_weight(codes).view(np.uint32).reshape(32, 4)
    slots = interleave(np.arange(16, dtype=np.uint8)[None])[0]
    for lane, strip in np.ndindex(32, 4):
        word, zero = words[lane, strip : strip + 1], np.zeros((1, 2))
        registers = int4_bytes.operand_bytes(word, zero, "int8", True)
        held = registers.view(np.int8).reshape(2, 4)
        k = slots[4 * (lane % 4) : 4 * (lane % 4) + 4]
        for c in range(2):
            column = 16 * strip + lane // 4 + 8 * c
            np.testing.assert_array_equal(held[c], codes[k, column])


def test_rows_are_interleaved_within_sixteen_columns(rng):
    x8 = rng.integers(0, 256, (3, 48), np.uint8)
    got = interleave(x8)
    for m, block, j in np.ndindex(3, 3, 8):
        assert got[m, 16 * block + 2 * j] == x8[m, 16 * block + j]
        assert got[m, 16 * block + 2 * j + 1] == x8[m, 16 * block + j + 8]


def test_a_table_is_sixteen_bytes_a_zero_point():
    assert int4_bytes.sixteen(np.arange(16)).nbytes == 16 * TABLE_BYTES
