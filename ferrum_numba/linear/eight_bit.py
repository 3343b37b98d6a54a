"""Whether a layer's rows can be rounded to 8 bits before they are multiplied."""

from __future__ import annotations

from ferrum_numba.gpu import has_fp8
from ferrum_numba.linear.stages import EIGHT_BIT, EIGHT_BIT_ROWS, of_eight_bits
from ferrum_numba.linear.stores import MarlinStore, Store
from ferrum_numba.reference.quantize_rows import X_TYPES


def eight_bit_refusal(store: Store, x_dtype: str) -> str | None:
    """Return why a store's weight cannot be multiplied with rows of 8 bits, or None."""
    if x_dtype not in X_TYPES:
        return f'activations must be "fp8" or "int8"; got {x_dtype!r}'
    asked = f'activations = "{x_dtype}"'
    if store.kind != MarlinStore.kind:
        return f'{asked} needs a packed weight; it is in store "{store.kind}"'
    problem = of_eight_bits(store.problem(EIGHT_BIT_ROWS), x_dtype)
    reasons = [kernel.refuses(problem) for kernel in EIGHT_BIT]
    if None not in reasons:
        return f"{asked}: " + "; ".join(str(reason) for reason in reasons)
    if store.runtime is not None and x_dtype == "fp8":
        gpu = store.runtime.device.gpu
        if not has_fp8(gpu.arch):
            return f"{asked} needs sm_89 or later; {gpu.name} is {gpu.arch}"
    return None
