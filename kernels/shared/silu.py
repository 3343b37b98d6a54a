"""The gate of a layer of experts: silu(gate) * up = gate / (1 + exp(-gate)) * up, in fp32."""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import F32, Array, instruction
from ferrum_numba.reference.moe import gated_product


@instruction("""{
 .reg .f32 t;
 mul.f32 t, <gate>, 0fBFB8AA3B;
 ex2.approx.ftz.f32 t, t;
 add.f32 t, t, 0f3F800000;
 rcp.approx.ftz.f32 t, t;
 mul.f32 t, t, <gate>;
 mul.f32 <d>, t, <up>;
}""")
def silu_mul(gate: F32, up: F32) -> F32:
    """Return silu(gate) * up.

    Its relative error is at most (8 + |gate|) * 2^-23, that of the exponent's rounding and of two
    approximations; below gate = -87 the result is 0, or too small by that of a subnormal.

    Source: PTX ISA, "Floating Point Instructions: ex2, rcp".
    """
    with np.errstate(invalid="ignore"):
        product: Array = gated_product(gate, up).astype(np.float32)
    return product
