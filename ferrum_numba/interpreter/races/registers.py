"""Registers that wgmma works in: read too early, or changed without wgmma_fence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.operands import Vector
from ferrum_numba.interpreter.races.report import RaceFault

if TYPE_CHECKING:
    from ferrum_numba.interpreter.races.products import Products


class Sums(Vector):
    """Accumulators of a product that may still run, in one lane; to be read after the wait."""

    __slots__ = ("_group", "_products", "_row")

    def __init__(self, row: Array, products: Products, group: int) -> None:
        self._row, self._products, self._group = row, products, group

    @property
    def row(self) -> Array:  # type: ignore[override]
        """The values, once the product has ended."""
        if self._group > self._products.ended:
            raise RaceFault(
                "uses sums of wgmma that may still be computed; missing: wgmma_commit() and "
                "wgmma_wait() before it"
            )
        return self._row

    def in_flight(self) -> Array:
        """Return the values for the product that goes on with them."""
        return self._row


class Fresh:
    """What the first lane of a warp has computed since its last wgmma_fence."""

    def __init__(self) -> None:
        self.fenced = False
        self._values: list[Any] = []

    def fence(self) -> None:
        """Forget them: a product may use them now."""
        self.fenced = True
        self._values.clear()

    def add(self, results: Sequence[Any]) -> None:
        """Note what an instruction gave the lane."""
        if self.fenced and results[0] is not None:
            self._values.append(results[0])

    def has(self, operand: Any) -> bool:
        """Return whether an operand is among them, or has an element that is."""
        known = {id(part) for value in self._values for part in _parts(value)}
        return any(id(part) in known for part in _parts(operand))


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, tuple):
        yield from value
