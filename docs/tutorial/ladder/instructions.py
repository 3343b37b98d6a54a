"""An instruction of our own: several lines of PTX, and what they do as NumPy, for `check`.

A loop over the elements of a long tuple would put the tuple into memory: the compiler unrolls only
short ones. So what is done to each of them is written out here, and a kernel sees one call.
"""

from functools import cache

import numpy as np

from ferrum_numba.ptx.convert import pack_f16x2
from ferrum_numba.ptx.instruction import F32, U32, U64, Instruction


@cache
def store_tokens(n):
    """Make `(address, stride_bytes, tokens, acc)`: write a wgmma's sums [64, n], transposed.

    address:      U64, of the lane's two columns in the row of out of its token 2 (lane % 4)
    stride_bytes: U64, of a row of out
    tokens:       U32, how many rows of out there are from that one on
    acc:          F32 x n/2; elements 4j + e and 4j + 2 + e are both columns of token 8j + e
    """
    places = [(8 * j + e, 4 * j + e) for j in range(n // 8) for e in range(2)]
    lines = [".reg .pred p;", ".reg .b32 pair;", ".reg .u64 row;"]
    for token, i in places:
        lines += [
            f"mad.lo.u64 row, <stride_bytes>, {token}, <address>;",
            f"cvt.rn.f16x2.f32 pair, <acc.{i + 2}>, <acc.{i}>;",
            f"setp.lt.u32 p, {token}, <tokens>;",
            "@p st.global.b32 [row], pair;",
        ]

    def twin(lanes, address, stride_bytes, tokens, acc):
        for token, i in places:
            pair = pack_f16x2.twin(acc[:, i], acc[:, i + 2])
            on = np.flatnonzero(tokens > token)
            row = address + stride_bytes * np.uint64(token)
            if on.size:
                data = np.ascontiguousarray(pair[on]).view(np.uint8).reshape(-1, 4)
                lanes.only(on).store_global(row[on], data)

    operands = {"address": U64, "stride_bytes": U64, "tokens": U32, "acc": F32 * (n // 2)}
    text = "{\n" + "\n".join(lines) + "\n}"
    return Instruction(f"store_tokens_{n}", text, operands, None, twin, effect="memory")
