"""The gate of a layer of experts: silu(gate) * up = gate / (1 + exp(-gate)) * up, in fp32."""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import F32, Array, instruction


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
    product: Array = _exact(gate, up).astype(np.float32)
    return product


def _exact(gate: Array, up: Array) -> Array:
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return wide / (1 + np.exp(-wide)) * up.astype(np.float64)
