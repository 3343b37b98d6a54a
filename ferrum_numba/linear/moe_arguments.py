"""What a layer of experts is called with, looked at before anything runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.moe.route_topk import LOGITS
from ferrum_numba.launch import stream_handle
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear import arrays
from ferrum_numba.linear.arrays import Seen
from ferrum_numba.linear.layer import Linear, rows_of
from ferrum_numba.linear.moe_spec import MoeSpec
from ferrum_numba.reference.moe import local_experts

# of what tells where tokens go; read one by one, so aligned to an element
ROUTED_TYPES = {"int32": np.dtype(np.int32), "fp32": np.dtype(np.float32), **LOGITS}


class Routed(NamedTuple):
    """What says which experts a token has: logits, or ids and weights.

    logits: type of the logits; None where ids and weights are given
    """

    logits: str | None
    arrays: tuple[Seen, ...]


class Arguments:
    """Says what arguments are, or raises.

    device:        number of the layer's GPU, or HOST
    allow_dropped: ids that are no expert's are dropped on the host too
    """

    def __init__(self, spec: MoeSpec, device: int, allow_dropped: bool) -> None:
        self.spec, self.name, self._device = spec, spec.name, device
        self._H, self._dtype, self._allow_dropped = spec.down.N, spec.down.dtype, allow_dropped

    def routed(
        self, x: Seen, given: tuple[Any, ...], stream: int | None, *, copied: bool = False
    ) -> Routed:
        """Return what was given to route by, after checking it.

        copied: arrays of the host, of which copies will be on the GPU
        """
        logits, ids, weights = given
        if (logits is None) == (ids is None) or (ids is None) != (weights is None):
            names = ("router_logits", "topk_ids", "topk_weights")
            got = [n for n, a in zip(names, given, strict=True) if a is not None]
            raise ProblemError(
                f"{self.name}: a layer is given router_logits, or topk_ids and topk_weights; got "
                f"{', '.join(got) or 'none of them'}"
            )
        wanted: tuple[tuple[str, Any, int, tuple[str, ...]], ...]
        if logits is not None:
            wanted = (("router_logits", logits, self.spec.most_ids, tuple(LOGITS)),)
        else:
            k = self.spec.top_k
            wanted = ("topk_ids", ids, k, ("int32",)), ("topk_weights", weights, k, ("fp32",))
        found = []
        for what, array, columns, types in wanted:
            seen = self.see(what, array, stream)
            if copied:
                seen = seen._replace(device=self._device, address=0)
            self._refuse_routed(what, seen, (*x.shape[:-1], columns), types)
            found.append(seen)
        return Routed(found[0].dtype if logits is not None else None, tuple(found))

    def _refuse_routed(
        self, what: str, array: Seen, shape: tuple[int, ...], types: tuple[str, ...]
    ) -> None:
        name = f"{self.name}: {what}"
        if array.shape != shape:
            raise ProblemError(f"{name} must be {list(shape)}; got {list(array.shape)}")
        if array.dtype not in types:
            raise ProblemError(f"{name} must be {' or '.join(types)}; got {array.dtype}")
        itemsize = ROUTED_TYPES[array.dtype].itemsize
        arrays.refuse(name, array, array.dtype, self._device, itemsize)

    def refuse_ids(self, ids: Array) -> None:
        """Raise ProblemError for an id that is no expert's, unless such ids are dropped."""
        if self._allow_dropped:
            return
        here = local_experts(ids, self.spec.most_ids)
        wrong = np.argwhere(here < 0)
        if wrong.size:
            at = tuple(wrong[0])
            raise ProblemError(
                f"{self.name}: topk_ids must be 0 to {self.spec.most_ids - 1}; got {ids[at]} at "
                f"{[int(i) for i in at]} (allow_dropped = True drops such)"
            )

    def refuse_shared(self, gate_up: Linear, down: Linear) -> None:
        """Raise ProblemError unless these can be a layer's shared experts."""
        inner = down.in_features
        got = [[each.in_features, each.out_features] for each in (gate_up, down)]
        if got != [[self._H, 2 * inner], [inner, self._H]]:
            raise ProblemError(
                f"{self.name}: shared must be [{self._H}, 2 * I] and [I, {self._H}]; got "
                f"{got[0]} and {got[1]}"
            )
        for each in (gate_up, down):
            on = HOST if each.store.runtime is None else each.store.runtime.device.index
            if (each.store.weight.dtype, on) != (self._dtype, self._device):
                raise ProblemError(
                    f"{self.name}: shared must be {self._dtype} on {arrays.place(self._device)}; "
                    f"{each.name} is {each.store.weight.dtype} on {arrays.place(on)}"
                )

    def tokens(self, x: Seen) -> int:
        """Return the rows of x, after checking it."""
        if not x.shape or x.shape[-1] != self._H:
            raise ProblemError(f"{self.name}: x must be [..., {self._H}]; got {list(x.shape)}")
        arrays.refuse(f"{self.name}: x", x, self._dtype, self._device)
        return rows_of(x)

    def refuse_out(self, x: Seen, out: Seen) -> None:
        """Raise unless out can be written where x is read."""
        if out.shape != x.shape:
            raise ProblemError(
                f"{self.name}: out must be {list(x.shape)} like x; got {list(out.shape)}"
            )
        arrays.refuse(f"{self.name}: out", out, self._dtype, self._device)
        if out.read_only:
            raise LaunchError(f"{self.name}: out is read-only")

    def refuse_overlap(self, out: Seen, routed: Seen) -> None:
        """Raise LaunchError where out would overwrite what the last kernel still reads."""
        ends = [
            array.address + int(np.prod(array.shape)) * ROUTED_TYPES[array.dtype].itemsize
            for array in (out, routed)
        ]
        if out.address < ends[1] and routed.address < ends[0]:
            raise LaunchError(f"{self.name}: out overlaps what the tokens are routed by")

    def handle(self, x: Any, stream: Any) -> int | None:
        """Return the handle of a stream; by default that on which x's library works now."""
        if self._device == HOST:
            return None
        return arrays.current_stream(x, self._device) if stream is None else stream_handle(stream)

    def see(self, what: str, array: Any, stream: int | None) -> Seen:
        """Return what there is to know of an array."""
        try:
            return arrays.see(array, stream)
        except LaunchError as error:
            raise LaunchError(f"{self.name}: {what}: {error}") from None
