"""Twins of mma, ldmatrix, stmatrix and wgmma, against loops over the ISA's figures."""

from types import SimpleNamespace

import numpy as np
import pytest
from ptx_cases import assert_close
from ptx_fragments import (
    SUM_ERROR,
    bits16,
    descriptor_bytes,
    fragment_a,
    fragment_b,
    fragment_c,
    loop_product,
    matrix_registers,
    per_warp,
    smem_image,
    values16,
)

from ferrum_numba import ptx
from ferrum_numba.errors import ConfigError, InterpreterError
from ferrum_numba.interpreter.races.unwatched import UNWATCHED
from ferrum_numba.kernels.prefill import steps as prefill_steps
from ferrum_numba.ptx.wgmma import chunk_addresses

MMA = {"f16": ptx.mma_m16n8k16_f16, "bf16": ptx.mma_m16n8k16_bf16}
COUNTS = (1, 2, 4)


def lanes_of_nobody(lanes=128):
    """Return a `Lanes` whose block nobody watches."""
    return SimpleNamespace(thread=np.arange(lanes), block=SimpleNamespace(watch=UNWATCHED))


class SharedMemory:
    """A `Lanes` with shared memory only."""

    def __init__(self, image, base=0):
        self.bytes = np.zeros(base + len(image), np.uint8)
        self.bytes[base:] = image

    def load_shared(self, address, size_bytes):
        assert (address % size_bytes == 0).all()
        return self.bytes[address[:, None].astype(np.int64) + np.arange(size_bytes)]

    load_products = load_shared

    def store_shared(self, address, data):
        self.bytes[address[:, None].astype(np.int64) + np.arange(data.shape[1])] = data


def uniform(value, dtype=np.uint32, lanes=128):
    return np.full(lanes, value, dtype)


@pytest.mark.parametrize("dtype", MMA)
def test_mma_places_every_element_of_a_and_b(dtype):
    """A one in A and distinct rows of B name the element that each product took."""
    b = bits16(np.arange(1, 129, dtype=np.float32).reshape(16, 8), dtype)
    zero = np.zeros((32, 4), np.float32)
    for row in range(16):
        for k in range(16):
            a = np.zeros((16, 16), np.float32)
            a[row, k] = 1
            want = np.zeros((16, 8), np.float32)
            want[row] = values16(b[k], dtype)
            got = MMA[dtype].twin(fragment_a(bits16(a, dtype)), fragment_b(b), zero)
            np.testing.assert_array_equal(got, fragment_c(want))


@pytest.mark.parametrize("dtype", MMA)
def test_mma_equals_a_loop(dtype, rng):
    a, b = (bits16(rng.standard_normal(shape), dtype) for shape in ((16, 16), (16, 8)))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    x, y = values16(a, dtype), values16(b, dtype)
    got = MMA[dtype].twin(fragment_a(a), fragment_b(b), fragment_c(c))
    bound = SUM_ERROR * fragment_c(np.abs(x) @ np.abs(y) + np.abs(c))
    assert_close(got, fragment_c((loop_product(x, y) + c).astype(np.float32)), bound)


def test_mma_takes_int4_codes_as_fp16_subnormals_exactly(rng):
    codes = rng.integers(0, 16, (16, 16)).astype(np.uint16)
    x = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    got = ptx.mma_m16n8k16_f16.twin(
        fragment_a(codes), fragment_b(bits16(x, "f16")), np.zeros((32, 4), np.float32)
    )
    np.testing.assert_array_equal(got * 2.0**24, fragment_c(codes.astype(np.float32) @ x))


@pytest.mark.parametrize(
    ("value", "want"), [(np.inf, np.inf), (-np.inf, -np.inf), (np.nan, np.nan)], ids=str
)
def test_mma_carries_infinities_and_nan_to_their_row(value, want):
    a = np.ones((16, 16), np.float32)
    a[5, 9] = value
    result = np.full((16, 8), 16, np.float32)
    result[5] = want
    got = ptx.mma_m16n8k16_f16.twin(
        fragment_a(bits16(a, "f16")),
        fragment_b(bits16(np.ones((16, 8)), "f16")),
        np.zeros((32, 4), np.float32),
    )
    np.testing.assert_array_equal(got, fragment_c(result))


def test_mma_overflows_to_infinity_without_a_warning():
    big = np.full((16, 16), 2.0**120, np.float32)
    got = ptx.mma_m16n8k16_bf16.twin(
        fragment_a(bits16(big, "bf16")),
        fragment_b(bits16(big[:, :8], "bf16")),
        np.zeros((32, 4), np.float32),
    )
    assert np.isposinf(got).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("count", COUNTS)
def test_ldmatrix_and_stmatrix_equal_a_loop_and_each_other(count, transposed, rng):
    suffix = f"x{count}_trans" if transposed else f"x{count}"
    image = rng.integers(0, 2**16, (32, 8), dtype=np.uint16)
    row = rng.permutation(32)
    address = (row * 16).astype(np.uint32)
    want = matrix_registers(image[row[: 8 * count]].reshape(count, 8, 8), transposed=transposed)
    memory = SharedMemory(image.view(np.uint8).ravel())
    got = getattr(ptx, f"ldmatrix_{suffix}").twin(memory, address)
    np.testing.assert_array_equal(got.reshape(32, count), want)

    target = SharedMemory(np.zeros(512, np.uint8))
    assert getattr(ptx, f"stmatrix_{suffix}").twin(target, address, got) is None
    stored = np.zeros_like(image)
    stored[row[: 8 * count]] = image[row[: 8 * count]]
    np.testing.assert_array_equal(target.bytes, stored.view(np.uint8).ravel())


def test_ldmatrix_x4_of_16_rows_is_the_a_fragment(rng):
    a = rng.integers(0, 2**16, (16, 16), dtype=np.uint16)
    lane = np.arange(32)
    address = (lane % 16 * 32 + lane // 16 * 16).astype(np.uint32)
    got = ptx.ldmatrix_x4.twin(SharedMemory(a.view(np.uint8).ravel()), address)
    np.testing.assert_array_equal(got, fragment_a(a))


def test_ldmatrix_x2_trans_of_16_rows_is_the_b_fragment(rng):
    b = rng.integers(0, 2**16, (16, 8), dtype=np.uint16)
    address = (np.arange(32) % 16 * 16).astype(np.uint32)
    got = ptx.ldmatrix_x2_trans.twin(SharedMemory(b.view(np.uint8).ravel()), address)
    np.testing.assert_array_equal(got, fragment_b(b))


@pytest.mark.parametrize("swizzle_bytes", [0, 32, 64, 128])
def test_descriptor_addresses_every_chunk_of_an_image(swizzle_bytes):
    """The image holds the number of each element, so that a wrong address reads a wrong one."""
    matrix = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    image, step_bytes = smem_image(matrix, swizzle_bytes)
    base = 2048
    memory = SharedMemory(image, base)
    describe = ptx.smem_descriptor(swizzle_bytes, *descriptor_bytes(24, swizzle_bytes))
    descriptor = int(describe.twin(uniform(base))[0])
    for step in range(2):
        addresses = chunk_addresses(descriptor + step * step_bytes // 16, 24)
        got = memory.load_shared(addresses.ravel(), 16).view(np.uint16).reshape(24, 16)
        np.testing.assert_array_equal(got, matrix[:, 16 * step : 16 * step + 16])


def test_descriptor_of_known_bits():
    """128-byte swizzle, 1024 bytes between groups of rows, as CUTLASS makes it."""
    describe = ptx.smem_descriptor(128, 1024)
    assert int(describe.twin(uniform(0x2400))[0]) == 0x4000004000010240


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_wgmma_rs_equals_a_loop_for_every_n(n, rng):
    a, b = (bits16(rng.standard_normal(shape), "f16") for shape in ((64, 32), (n, 32)))
    acc = rng.standard_normal((64, n)).astype(np.float32)
    describe = ptx.smem_descriptor(128, 1024)
    memory = SharedMemory(smem_image(b, 128)[0])
    desc = describe.twin(uniform(0)) + np.uint64(2)
    frag_a = per_warp(fragment_a, a[:, 16:])
    x, y = values16(a[:, 16:], "f16"), values16(b[:, 16:], "f16").T
    for scale_d in (0, 1):
        got = ptx.wgmma_rs(n).twin(
            memory, per_warp(fragment_c, acc), frag_a, desc, uniform(scale_d)
        )
        want = (loop_product(x, y) + scale_d * acc).astype(np.float32)
        bound = SUM_ERROR * (np.abs(x) @ np.abs(y) + np.abs(acc))
        assert_close(got, per_warp(fragment_c, want), per_warp(fragment_c, bound))


@pytest.mark.parametrize("dtype", MMA)
@pytest.mark.parametrize("swizzle_bytes", [0, 32, 64, 128])
def test_wgmma_ss_equals_a_loop_for_every_swizzle(swizzle_bytes, dtype, rng):
    a, b = (bits16(rng.standard_normal(shape), dtype) for shape in ((64, 32), (48, 32)))
    image_a, image_b = smem_image(a, swizzle_bytes)[0], smem_image(b, swizzle_bytes)[0]
    memory = SharedMemory(np.concatenate([image_a, image_b]))
    desc_a, desc_b = (
        ptx.smem_descriptor(swizzle_bytes, *descriptor_bytes(rows, swizzle_bytes)).twin(
            uniform(address)
        )
        for rows, address in ((64, 0), (48, len(image_a)))
    )
    acc = np.zeros((128, 24), np.float32)
    got = ptx.wgmma_ss(48, dtype).twin(memory, acc, desc_a, desc_b, uniform(1))
    x, y = values16(a[:, :16], dtype), values16(b[:, :16], dtype).T
    bound = SUM_ERROR * per_warp(fragment_c, np.abs(x) @ np.abs(y))
    assert_close(got, per_warp(fragment_c, loop_product(x, y).astype(np.float32)), bound)


def test_wgmma_refuses_lanes_that_disagree():
    memory = SharedMemory(np.zeros(4096, np.uint8))
    acc, frag_a = np.zeros((128, 4), np.float32), np.zeros((128, 4), np.uint32)
    desc = ptx.smem_descriptor(128, 1024).twin(uniform(0))
    with pytest.raises(InterpreterError, match="different matrix descriptors"):
        ptx.wgmma_rs(8).twin(
            memory, acc, frag_a, desc + np.arange(128, dtype=np.uint64), uniform(1)
        )
    with pytest.raises(InterpreterError, match="different scale_d"):
        ptx.wgmma_rs(8).twin(memory, acc, frag_a, desc, np.arange(128, dtype=np.uint32))
    with pytest.raises(InterpreterError, match="base offset"):
        ptx.wgmma_rs(8).twin(memory, acc, frag_a, desc | np.uint64(1 << 49), uniform(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ptx.wgmma_rs(12), "multiple of 8 from 8 to 256; got 12"),
        (lambda: ptx.wgmma_ss(264), "multiple of 8 from 8 to 256; got 264"),
        (lambda: ptx.wgmma_rs(8, "f32"), "needs dtype f16 or bf16; got f32"),
        (lambda: ptx.smem_descriptor(16, 128), "0, 32, 64 or 128 bytes; got 16"),
        (lambda: ptx.smem_descriptor(128, 1000), "stride_bytes must be a multiple of 16"),
        (lambda: ptx.smem_descriptor(0, 128, 1 << 18), "leading_bytes must be .* got 262144"),
    ],
    ids=["n-12", "n-264", "f32", "swizzle-16", "stride-1000", "leading-262144"],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_waits_pass_accumulators_through():
    acc = np.arange(512, dtype=np.float32).reshape(128, 4)
    assert ptx.wgmma_wait_acc(8).twin(lanes_of_nobody(), acc, 0) is acc
    for instruction, args in (
        (ptx.wgmma_fence, ()),
        (ptx.wgmma_commit, ()),
        (ptx.wgmma_wait, (0,)),
    ):
        assert instruction.twin(lanes_of_nobody(), *args) is None


@pytest.mark.parametrize(("groups", "strips"), [(1, 1), (0, 2), (1, 3)])
def test_stages_ahead_need_an_even_number_of_chains(groups, strips):
    with pytest.raises(ConfigError, match=f"groups = {groups}, strips = {strips}"):
        prefill_steps.StageAhead(16, "f16", groups, 0, 8, 128, strips)
