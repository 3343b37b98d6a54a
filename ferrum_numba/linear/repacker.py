"""Weights packed on the GPU: the checkpoint's bytes go up as they are."""

from __future__ import annotations

from types import TracebackType

from ferrum_numba.contract import Array
from ferrum_numba.kernels.tools.repack import RepackProblem
from ferrum_numba.launch import Buffer, Followed, InTurn, Order, Repeated
from ferrum_numba.linear.runtime import Runtime
from ferrum_numba.linear.stages import REPACK, default

WORD_ROWS = 8
OPERANDS = ("qweight", "perm", "out")


class Repacker:
    """Packs weights into memory of a GPU; the copy of their words is gone afterwards.

    runtime: of the GPU, None where there is none and nobody calls this
    """

    def __init__(self, on: Runtime | None) -> None:
        self.runtime = on
        self._staging: Buffer | None = None
        self._launches: dict[RepackProblem, Repeated | Followed | InTurn] = {}

    def __enter__(self) -> Repacker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._staging is not None and self.runtime is not None:
            try:
                # what failed while running is raised here
                self.runtime.device.synchronize()
            finally:
                self._staging.free()

    def __call__(self, qweight: Array, perm: int, packed: int, shape: tuple[int, int]) -> None:
        """Pack a weight.

        Args:
            qweight: [K/8, N] int32, on the host
            perm:    address of its order, 0 for none
            packed:  address of the packed weight
            shape:   K and N as they are stored
        """
        assert self.runtime is not None, "there is a GPU to pack on"
        if self._staging is None or self._staging.size_bytes < qweight.nbytes:
            self._staging = Buffer.empty(self.runtime.device, qweight.nbytes)
        self._staging.write(qweight)
        rows, columns = qweight.shape
        problem = RepackProblem(1, WORD_ROWS * rows, columns, bool(perm), *shape)
        if problem not in self._launches:
            stage = default(REPACK, problem, self.runtime.device.gpu)
            self._launches[problem] = self.runtime.plans.launch(stage, OPERANDS)
        self._launches[problem](0, self._staging.pointer, perm, Order.packed([packed]))
