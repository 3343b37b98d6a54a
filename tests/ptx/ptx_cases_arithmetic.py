"""Cases of arithmetic, conversion and shuffles: one element a thread, bits in, bits out."""

import numpy as np
from numba import cuda
from numba.cuda.types import uint32, uint64
from ptx_cases import Case
from ptx_floats import (
    BF16,
    F16,
    F32,
    SPECIAL_BF16,
    SPECIAL_F16,
    SPECIAL_F32,
    adversarial,
    decode,
    rounded_fma,
)

from ferrum_numba import ptx

NUM_THREADS = 256
NUM_BLOCKS = 4
COUNT = NUM_THREADS * NUM_BLOCKS


def unary(op, load, store, in_bytes, out_bytes):
    def unary_case(a, out):
        i = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        x = load(a + uint64(i * uint32(in_bytes)))
        store(out + uint64(i * uint32(out_bytes)), op(x))

    return unary_case


def binary(op, load_a=ptx.ld_global_u32, load_b=ptx.ld_global_u32, store=ptx.st_global_u32):
    def binary_case(a, b, out):
        i = uint64(uint32((cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * 4))
        store(out + i, op(load_a(a + i), load_b(b + i)))

    return binary_case


def ternary(op):
    def ternary_case(a, b, c, out):
        i = uint64(uint32((cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * 4))
        x = ptx.ld_global_u32(a + i)
        y = ptx.ld_global_u32(b + i)
        z = ptx.ld_global_u32(c + i)
        ptx.st_global_u32(out + i, op(x, y, z))

    return ternary_case


def fma_f32_case(a, b, c, out):
    i = uint64(uint32((cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * 4))
    x = ptx.ld_global_f32(a + i)
    y = ptx.ld_global_f32(b + i)
    z = ptx.ld_global_f32(c + i)
    ptx.st_global_f32(out + i, ptx.fma_f32(x, y, z))


def lop3_with(lut):
    def lop3_case(a, b, c, out):
        i = uint64(uint32((cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * 4))
        x = ptx.ld_global_u32(a + i)
        y = ptx.ld_global_u32(b + i)
        z = ptx.ld_global_u32(c + i)
        ptx.st_global_u32(out + i, ptx.lop3(x, y, z, lut))

    return lop3_case


def unpack(op, num_elements):
    """Return a kernel that stores each element of a vector of fp32 that op makes of a word."""

    def unpack_case(a, out):
        i = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        values = op(ptx.ld_global_u32(a + uint64(i * 4)))
        for j in range(num_elements):
            ptx.st_global_f32(out + uint64((i * num_elements + j) * 4), values[j])

    return unpack_case


def splat_case(a, out):
    t = uint32(cuda.threadIdx.x)
    values = splat_f32_x5(ptx.ld_global_f32(a + uint64(t * 4)))
    for j in range(5):
        ptx.st_global_f32(out + uint64((t * 5 + j) * 4), values[j])


def shfl_xor_literal_case(a, out):
    i = uint64(uint32(cuda.threadIdx.x * 4))
    value = ptx.ld_global_u32(a + i)
    for mask in (16, 8, 4, 2, 1):
        value = uint32(value + ptx.shfl_xor(value, mask))
    ptx.st_global_u32(out + i, value)


def words(*names):
    """Return inputs of random words."""
    return lambda rng: {name: rng.integers(0, 2**32, COUNT, dtype=np.uint32) for name in names}


def pairs(special, *names):
    """Return inputs of adversarial 16-bit pairs."""
    return lambda rng: {
        name: adversarial(rng, special, 2 * COUNT).view(np.uint32) for name in names
    }


def halves(special):
    """Return inputs of adversarial 16-bit floats."""
    return lambda rng: {"a": adversarial(rng, special, COUNT)}


def singles(*names):
    """Return inputs of adversarial fp32."""
    return lambda rng: {
        name: adversarial(rng, SPECIAL_F32, COUNT).view(np.float32) for name in names
    }


def lop3_want(lut):
    def want(inputs):
        a, b, c = (inputs[name] for name in "abc")
        out = np.zeros_like(a)
        for bit in range(32):
            index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
            out |= (lut >> index & 1).astype(np.uint32) << bit
        return out

    return want


def popc_want(inputs):
    return np.array([word.bit_count() for word in inputs["a"].tolist()], np.uint32)


def prmt_want(inputs):
    out = []
    for a, b, selector in zip(*(inputs[name].tolist() for name in "abs"), strict=True):
        source = (b << 32 | a).to_bytes(8, "little")
        word = 0
        for i in range(4):
            nibble = selector >> 4 * i & 15
            byte = source[nibble & 7]
            if nibble & 8:
                byte = 255 * (byte >> 7)
            word |= byte << 8 * i
        out.append(word)
    return np.array(out, np.uint32)


def pair_want(form, expression):
    """Return want of a pair instruction: expression of floats -> (a, b, c) of one fma."""

    def want(inputs):
        columns = [
            [decode(bits, form) for bits in array.view(np.uint16).tolist()]
            for array in inputs.values()
        ]
        halves = [rounded_fma(*expression(*row), form) for row in zip(*columns, strict=True)]
        return np.array(halves, np.uint16).view(np.uint32)

    return want


def rounded(array, form):
    return np.array([rounded_fma(x, 1.0, -0.0, form) for x in array.tolist()], np.uint16)


def narrowed(form):
    return lambda inputs: rounded(inputs["a"], form)


def packed(form):
    def want(inputs):
        both = np.stack([rounded(inputs["a"], form), rounded(inputs["b"], form)], -1)
        return both.view(np.uint32)[:, 0]

    return want


def widened(form, num_elements=1):
    def want(inputs):
        values = [decode(bits, form) for bits in inputs["a"].view(np.uint16).tolist()]
        shape = (-1, num_elements) if num_elements > 1 else (-1,)
        return np.array(values, np.float32).reshape(shape)

    return want


splat_f32_x5 = ptx.splat_f32(5)
LUTS = (0xEA, 0x6A, 0x96, 0x01, 0xFE)
PAIR_EXPRESSIONS = {
    "add": lambda a, b: (a, 1.0, b),
    "sub": lambda a, b: (b, -1.0, a),
    "mul": lambda a, b: (a, b, -0.0),
    "fma": lambda a, b, c: (a, b, c),
}


def pair_cases():
    for dtype, form, special in (("f16", F16, SPECIAL_F16), ("bf16", BF16, SPECIAL_BF16)):
        for verb, expression in PAIR_EXPRESSIONS.items():
            op = getattr(ptx, f"{verb}_{dtype}x2")
            ternary_op = verb == "fma"
            function = ternary(op) if ternary_op else binary(op)
            inputs = pairs(special, *("abc" if ternary_op else "ab"))
            yield elementwise(op.name, op, function, inputs, pair_want(form, expression))


def elementwise(name, op, function, inputs, want):
    return Case(name, (op,), function, inputs, want, num_threads=NUM_THREADS, num_blocks=NUM_BLOCKS)


def logic_cases():
    for lut in LUTS:
        name = f"lop3_{lut:#04x}"
        yield elementwise(name, ptx.lop3, lop3_with(lut), words("a", "b", "c"), lop3_want(lut))
    popping = unary(ptx.popc, ptx.ld_global_u32, ptx.st_global_u32, 4, 4)
    yield elementwise("popc", ptx.popc, popping, words("a"), popc_want)
    yield elementwise("prmt", ptx.prmt, ternary(ptx.prmt), words("a", "b", "s"), prmt_want)


def convert_cases():
    for dtype, form, special in (("f16", F16, SPECIAL_F16), ("bf16", BF16, SPECIAL_BF16)):
        pack, split = getattr(ptx, f"pack_{dtype}x2"), getattr(ptx, f"unpack_{dtype}x2")
        widen, narrow = getattr(ptx, f"{dtype}_to_f32"), getattr(ptx, f"f32_to_{dtype}")
        load = ptx.ld_global_f32
        one_pair, one = pairs(special, "a"), halves(special)
        packing = binary(pack, load, load)
        yield elementwise(pack.name, pack, packing, singles("a", "b"), packed(form))
        yield elementwise(split.name, split, unpack(split, 2), one_pair, widened(form, 2))
        widening = unary(widen, ptx.ld_global_u16, ptx.st_global_f32, 2, 4)
        yield elementwise(widen.name, widen, widening, one, widened(form))
        narrowing = unary(narrow, load, ptx.st_global_u16, 4, 2)
        yield elementwise(narrow.name, narrow, narrowing, singles("a"), narrowed(form))


def bits_cases():
    to_bits = unary(ptx.f32_bits, ptx.ld_global_f32, ptx.st_global_u32, 4, 4)
    from_bits = unary(ptx.bits_f32, ptx.ld_global_u32, ptx.st_global_f32, 4, 4)
    yield elementwise(
        "f32_bits", ptx.f32_bits, to_bits, singles("a"), lambda i: i["a"].view(np.uint32)
    )
    yield elementwise(
        "bits_f32", ptx.bits_f32, from_bits, words("a"), lambda i: i["a"].view(np.float32)
    )
    yield elementwise("fma_f32", ptx.fma_f32, fma_f32_case, fma_inputs, fma_want)
    yield Case(
        "splat_f32", (splat_f32_x5,), splat_case,
        lambda rng: {"a": rng.standard_normal(32).astype(np.float32)},
        lambda i: np.tile(i["a"][:, None], (1, 5)),
    )  # fmt: skip


def fma_inputs(rng):
    """Return fp32 of all sizes; of half of them the sum all but cancels."""
    a, b, c = (rng.standard_normal(COUNT) * 2.0 ** rng.integers(-9, 9, COUNT) for _ in range(3))
    half = COUNT // 2
    c[:half] = -np.float32(a[:half]) * np.float32(b[:half])
    return {name: x.astype(np.float32) for name, x in zip("abc", (a, b, c), strict=True)}


def fma_want(inputs):
    rows = zip(*(inputs[name].tolist() for name in "abc"), strict=True)
    return np.array([rounded_fma(*row, F32) for row in rows], np.uint32).view(np.float32)


def shuffled(source):
    """Return want of a shuffle: source(lane, operand) -> lane, out of the warp for its own."""

    def want(inputs):
        value, operand = inputs["a"], inputs["b"]
        out = np.empty_like(value)
        for lane in range(32):
            other = source(lane, int(operand[lane]))
            out[lane] = value[other if 0 <= other < 32 else lane]
        return out

    return want


def approximations():
    """Yield the instructions with a bound on their error, relative but where results underflow."""
    around = np.float32([0, 1, -1, 3.5, 126, -126, -200, 130])
    any_size = np.float32([1, -1, 2.0**-125, -3e38, np.inf, 0, 7])
    for op, special, low, high in (
        (ptx.ex2_approx, around, -120, 120), (ptx.rcp_approx, any_size, -40, 40),
    ):  # fmt: skip
        yield Case(
            op.name, (op,), unary(op, ptx.ld_global_f32, ptx.st_global_f32, 4, 4),
            lambda rng, special=special, low=low, high=high: {
                "a": np.append(special, rng.uniform(low, high, COUNT - len(special)).astype("f4"))
            },
            lambda inputs, op=op: approximated(op, inputs["a"]),
            lambda inputs, op=op: 2.0**-22 * sizes(approximated(op, inputs["a"])) + 2.0**-126,
            num_threads=NUM_THREADS, num_blocks=NUM_BLOCKS,
        )  # fmt: skip


def approximated(op, a):
    """Return the function rounded to float32, one value at a time."""
    exact = {"ex2_approx": lambda x: 2.0**x, "rcp_approx": lambda x: 1 / x if x else np.inf}
    with np.errstate(over="ignore"):
        return np.float32([exact[op.name](x) for x in a.tolist()])


def sizes(values):
    return np.where(np.isfinite(values), np.abs(values), 0).astype(np.float64)


def lane_words(rng):
    return {
        "a": rng.integers(0, 2**32, 32, dtype=np.uint32),
        "b": rng.integers(0, 32, 32, dtype=np.uint32),
    }


def one_word(rng):
    return {"a": lane_words(rng)["a"]}


def lane_floats(rng):
    return {**lane_words(rng), "a": rng.standard_normal(32).astype(np.float32)}


def voted(inputs):
    word = sum(1 << lane for lane in range(32) if inputs["a"][lane])
    return np.full(32, word, np.uint32)


def matched(inputs):
    a = inputs["a"].tolist()
    return np.array(
        [sum(1 << other for other in range(32) if a[other] == mine) for mine in a], np.uint32
    )


def reduced(function):
    """Return want of a reduction: one word for all lanes, of Python's integers."""
    return lambda inputs: np.full(32, function(inputs["a"].tolist()) % 2**32, np.uint32)


def few_words(rng):
    return {"a": rng.choice(np.array([0, 1, 2**31], np.uint32), 32)}


SHUFFLES = {
    "shfl_idx": lambda lane, operand: operand,
    "shfl_xor": lambda lane, operand: lane ^ operand,
    "shfl_down": lambda lane, operand: lane + operand,
    "shfl_up": lambda lane, operand: lane - operand,
}


def shuffle_cases():
    for name, source in SHUFFLES.items():
        op, op_f32 = getattr(ptx, name), getattr(ptx, f"{name}_f32")
        exchange_f32 = binary(op_f32, ptx.ld_global_f32, ptx.ld_global_u32, ptx.st_global_f32)
        yield Case(op.name, (op,), binary(op), lane_words, shuffled(source))
        yield Case(op_f32.name, (op_f32,), exchange_f32, lane_floats, shuffled(source))
    for op, want in ((ptx.ballot, voted), (ptx.match_any, matched)):
        function = unary(op, ptx.ld_global_u32, ptx.st_global_u32, 4, 4)
        yield Case(op.name, (op,), function, few_words, want)
    for op, function in ((ptx.redux_add, sum), (ptx.redux_max, max), (ptx.redux_min, min)):
        reducing = unary(op, ptx.ld_global_u32, ptx.st_global_u32, 4, 4)
        yield Case(op.name, (op,), reducing, one_word, reduced(function))
    yield Case(
        "shfl_xor_literal", (ptx.shfl_xor,), shfl_xor_literal_case,
        lambda rng: {"a": rng.integers(0, 2**32, 32, dtype=np.uint32)},
        lambda inputs: np.full(32, inputs["a"].sum(dtype=np.uint32), np.uint32),
    )  # fmt: skip


CASES = (
    *logic_cases(), *pair_cases(), *convert_cases(), *bits_cases(), *approximations(),
    *shuffle_cases(),
)  # fmt: skip
