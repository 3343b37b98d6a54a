"""The case of the gate: gates of every size, an error that grows with the exponent's."""

import numpy as np
from numba import cuda
from numba.cuda.types import uint32, uint64
from ptx_cases import Case

from ferrum_numba import ptx
from ferrum_numba.kernels.shared.silu import silu_mul


def one(gate, up, out):
    place = uint64(uint32(cuda.threadIdx.x) * 4)
    value = silu_mul(ptx.ld_global_f32(gate + place), ptx.ld_global_f32(up + place))
    ptx.st_global_f32(out + place, value)


def inputs(rng):
    gate = np.linspace(-80, 80, 32, dtype=np.float32)
    gate[:4] = 0, -1e-3, 1e-3, 300
    return {"gate": gate, "up": rng.standard_normal(32).astype(np.float32)}


def want(inputs):
    gate, up = (inputs[name].astype(np.float64) for name in ("gate", "up"))
    # not the twin's way: silu(g) is g / 2 * (1 + tanh(g / 2)), but where that cancels
    silu = np.where(gate > -1, gate / 2 * (1 + np.tanh(gate / 2)), gate * np.exp(gate))
    silu = np.where(gate > -1, silu, silu / (1 + np.exp(gate)))
    return (silu * up).astype(np.float32)


def bound(inputs):
    return (8 + np.abs(inputs["gate"])) * 2.0**-23 * np.abs(want(inputs))


CASES = (Case("silu_mul", (silu_mul,), one, inputs, want, bound),)
