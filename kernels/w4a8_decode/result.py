"""What becomes of w4a8_decode's sums: those of `decode`, times the scale of their token."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.decode import result
from ferrum_numba.ptx.memory import ld_global_f32


def make_write(config):
    """Return what writes four columns of a token of a slice, an item of its sums.

    columns: scales of the weight's columns, then those of the tokens
    """
    row_items, write_columns = config.row_items, result.make_write(config)

    @cuda.jit(device=True, forceinline=True)
    def write(total, slice_id, item, columns, bias, out, first_row, out_columns, has_bias):
        scales, sx = columns
        token = uint32(first_row + uint32(item // uint32(row_items)))
        factor = ld_global_f32(sx + uint64(token) * uint64(4))
        total = (
            float32(total[0] * factor), float32(total[1] * factor),
            float32(total[2] * factor), float32(total[3] * factor),
        )  # fmt: skip
        write_columns(total, slice_id, item, scales, bias, out, first_row, out_columns, has_bias)

    return write
