"""Who holds what of a matrix, by explicit loops over the figures of the PTX ISA."""

import numpy as np

# tensor cores align and truncate sums in an order of their own: a few steps of 2**-23 of the
# largest partial sum, which the sum of magnitudes bounds
SUM_ERROR = 2.0**-20


def bits16(matrix, dtype):
    """Return the uint16 bits of a float32 matrix in fp16 or bf16 (by truncation)."""
    if dtype == "f16":
        return matrix.astype(np.float16).view(np.uint16)
    return (np.ascontiguousarray(matrix, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def values16(bits, dtype):
    """Return float64 of fp16 or bf16 bits."""
    if dtype == "f16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def word(low, high):
    return int(low) | int(high) << 16


def fragment_a(a):
    """Return [32, 4] words of a [16, 16] uint16."""
    out = np.zeros((32, 4), np.uint32)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        out[lane] = [
            word(a[row, column], a[row, column + 1]),
            word(a[row + 8, column], a[row + 8, column + 1]),
            word(a[row, column + 8], a[row, column + 9]),
            word(a[row + 8, column + 8], a[row + 8, column + 9]),
        ]
    return out


def fragment_b(b):
    """Return [32, 2] words of b [16, 8] uint16."""
    out = np.zeros((32, 2), np.uint32)
    for lane in range(32):
        column, row = lane // 4, lane % 4 * 2
        out[lane] = [
            word(b[row, column], b[row + 1, column]),
            word(b[row + 8, column], b[row + 9, column]),
        ]
    return out


def fragment_c(c):
    """Return [32, n / 2] elements of c [16, n]: 4 of each 8 columns."""
    n = c.shape[1]
    out = np.zeros((32, n // 2), c.dtype)
    for lane in range(32):
        for j in range(n // 8):
            row, column = lane // 4, 8 * j + lane % 4 * 2
            out[lane, 4 * j : 4 * j + 4] = [
                c[row, column],
                c[row, column + 1],
                c[row + 8, column],
                c[row + 8, column + 1],
            ]
    return out


def per_warp(fragment, matrix):
    """Return the fragments of a [64, n] matrix over a warpgroup: 16 rows a warp."""
    return np.concatenate([fragment(matrix[16 * warp : 16 * warp + 16]) for warp in range(4)])


def matrix_registers(matrices, *, transposed):
    """Return [32, count] words that ldmatrix gives for [count, 8, 8] uint16."""
    out = np.zeros((32, len(matrices)), np.uint32)
    for i, matrix in enumerate(matrices):
        held = matrix.T if transposed else matrix
        for lane in range(32):
            row, column = lane // 4, lane % 4 * 2
            out[lane, i] = word(held[row, column], held[row, column + 1])
    return out


# which chunk of 16 bytes of a swizzled row holds chunk c of row r (CUTLASS, Swizzle<B, 4, 3>)
SWIZZLES = {
    32: lambda row, chunk: chunk ^ (row % 8 // 4),
    64: lambda row, chunk: chunk ^ (row % 8 // 2),
    128: lambda row, chunk: chunk ^ (row % 8),
}


def smem_image(matrix, swizzle_bytes):
    """Return the bytes of a K-major [rows, 32] uint16 matrix, k in steps of 16, and the step.

    Swizzled rows are filled to their length with NaN; without a swizzle, 8 x 8 core matrices
    follow each other, first along the rows, then along k.

    Returns:
        image: uint8
        step:  bytes from one k of 16 to the next
    """
    rows, num_chunks = len(matrix), 4
    tile_bytes = rows * max(swizzle_bytes, 32)
    tiles = 2 if swizzle_bytes in (0, 32) else 1
    image = np.full(tile_bytes * tiles // 16 * 8, 0xFFFF, np.uint16).reshape(-1, 8)
    for row in range(rows):
        for chunk in range(num_chunks):
            values = matrix[row, 8 * chunk : 8 * chunk + 8]
            if swizzle_bytes == 0:
                address = chunk * rows * 16 + row * 16
            elif swizzle_bytes == 32:
                place = SWIZZLES[32](row, chunk % 2)
                address = chunk // 2 * tile_bytes + row * 32 + place * 16
            else:
                address = row * swizzle_bytes + SWIZZLES[swizzle_bytes](row, chunk) * 16
            image[address // 16] = values
    step_bytes = {0: 2 * rows * 16, 32: tile_bytes, 64: 32, 128: 32}[swizzle_bytes]
    return image.view(np.uint8).ravel(), step_bytes


def unimage(image, rows, swizzle_bytes):
    """Return the [rows, 32] uint16 matrix of a `smem_image`, by numbering its elements."""
    number = np.arange(rows * 32, dtype=np.uint16).reshape(rows, 32)
    order = smem_image(number, swizzle_bytes)[0].view(np.uint16)
    held = order != 0xFFFF
    matrix = np.empty(rows * 32, np.uint16)
    matrix[order[held]] = image.view(np.uint16)[held]
    return matrix.reshape(rows, 32)


def unfragment(words, shape, fragment):
    """Return the uint16 matrix of which `words` is the fragment, by numbering its elements."""
    number = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    matrix = np.empty(number.size, np.uint16)
    matrix[fragment(number).view(np.uint16).ravel()] = words.view(np.uint16).ravel()
    return matrix.reshape(shape)


def loop_product(a, b):
    """Return a @ b in float64, one k at a time."""
    out = np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        out += a[:, k : k + 1] * b[k : k + 1]
    return out


def descriptor_bytes(rows, swizzle_bytes):
    """Return (stride_bytes, leading_bytes) of `smem_image`."""
    return (128, rows * 16) if swizzle_bytes == 0 else (8 * swizzle_bytes, 16)
