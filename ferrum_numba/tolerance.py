"""How far a result may be from its reference, and how far it is."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.errors import MismatchError

Array = npt.NDArray[Any]
# results of so many elements are compared in pieces of so many, by no more threads than that
LARGE, PIECE, MOST_THREADS = 1 << 20, 1 << 17, 8


@dataclass(frozen=True)
class Comparison:
    """How far a result is from its reference.

    rel_error:  ||got - want|| / ||want|| (Frobenius)
    mean_error: mean |got - want| / mean |want|
    max_error:  max |got - want| / max |want|; what a mean hides
    worst:      index of the largest difference
    """

    rel_error: float
    mean_error: float
    max_error: float
    worst: tuple[int, ...]
    ok: bool
    message: str


@dataclass(frozen=True)
class Tolerance:
    """Bounds on a `Comparison`, with the reason for their size."""

    rel: float
    max: float
    reason: str

    def compare(self, got: Array, want: Array) -> Comparison:
        """Compare a result with its reference in float64; NaN or Inf never passes.

        Where the reference is NaN nobody writes: the result must be the NaN that was there. Of a
        structure every field is compared, integers exactly.
        """
        if got.shape != want.shape:
            raise MismatchError(f"the result has shape {got.shape}, the reference {want.shape}")
        if got.dtype.names is not None:
            return self._compare_fields(got, want)
        if got.size >= LARGE and (found := self._compare_large(got, want)):
            return found
        if np.isnan(want).any():
            return self._compare_written(got, want)
        if np.array_equal(got, want) and np.isfinite(got).all():
            return Comparison(0.0, 0.0, 0.0, (), True, "")
        g, w = got.astype(np.float64), want.astype(np.float64)
        wrong = ~np.isfinite(g)
        if wrong.any():
            worst = tuple(int(i) for i in np.argwhere(wrong)[0])
            message = (
                f"{int(wrong.sum())} of {g.size} elements are not finite "
                f"(never written, or overflowed); the first is {worst}, want {w[worst]:.6g}"
            )
            return Comparison(np.inf, np.inf, np.inf, worst, False, message)
        diff = np.abs(g - w)
        tiny = np.finfo(np.float64).tiny
        worst = tuple(int(i) for i in np.unravel_index(int(diff.argmax()), diff.shape))
        # a reference of zeros asks for zeros: then any difference is infinitely wrong
        rel = float(np.linalg.norm(diff) / max(float(np.linalg.norm(w)), tiny))
        mean = float(diff.mean() / max(float(np.abs(w).mean()), tiny))
        peak = float(diff.max() / max(float(np.abs(w).max()), tiny))
        ok = rel <= self.rel and peak <= self.max
        message = (
            ""
            if ok
            else (
                f"relative error {rel:.2e} (bound {self.rel:.1e}), largest {peak:.2e} of the peak "
                f"(bound {self.max:.1e}) at {worst}: got {g[worst]:.6g}, want {w[worst]:.6g}"
                f"{_pattern(g, w, self.max)}"
            )
        )
        return Comparison(rel, mean, peak, worst, ok, message)

    def _compare_large(self, got: Array, want: Array) -> Comparison | None:
        """Return the comparison where it is a good one, None where there is something to say.

        In pieces that stay in the cache, on several processors, in float32, whose rounding is far
        below any bound.
        """
        pieces = list(zip(pieces_of(got), pieces_of(want), strict=True))
        with on_processors() as threads:
            sums = np.array(list(threads.map(_differ, pieces)))
        if not np.isfinite(sums).all():
            return None
        square, total, _, want_square, want_total, _ = map(float, sums.sum(0))
        peak, want_peak = float(sums[:, 2].max()), float(sums[:, 5].max())
        tiny = float(np.finfo(np.float64).tiny)
        rel = math.sqrt(square) / max(math.sqrt(want_square), tiny)
        largest = peak / max(want_peak, tiny)
        if rel > self.rel or largest > self.max:
            return None
        piece = int(sums[:, 2].argmax())
        place = piece * PIECE + int(_difference(*pieces[piece]).argmax())
        worst = tuple(int(i) for i in np.unravel_index(place, got.shape))
        mean = total / max(want_total, tiny)
        return Comparison(rel, mean, largest, worst, True, "")

    def _compare_written(self, got: Array, want: Array) -> Comparison:
        """Compare what is written, and that the rest was left alone."""
        unwritten = np.isnan(want)
        touched = unwritten & ~np.isnan(got)
        if touched.any():
            worst = tuple(int(i) for i in np.argwhere(touched)[0])
            message = (
                f"{int(touched.sum())} elements are written that nobody owns; the first is {worst}"
            )
            return Comparison(np.inf, np.inf, np.inf, worst, False, message)
        return self.compare(np.where(unwritten, 0, got), np.where(unwritten, 0, want))

    def _compare_fields(self, got: Array, want: Array) -> Comparison:
        """Return the comparison of the worst field, by whose name its message begins."""
        exact = Tolerance(0.0, 0.0, "integers")
        found = []
        for name in got.dtype.names or ():
            bounds = exact if np.issubdtype(got[name].dtype, np.integer) else self
            one = bounds.compare(got[name], want[name])
            found.append(replace(one, message=one.message and f"{name}: {one.message}"))
        return max(found, key=lambda one: (not one.ok, one.max_error))


def _pattern(got: Array, want: Array, bound: float) -> str:
    """Return what a wrong result is of the right one, as far as it can be seen, as a clause."""
    size = float(np.linalg.norm(want))
    if size == 0:
        return ""
    # far from any rounding, and near enough for half a sum to count as half
    near = max(10 * bound, 1e-3)
    factor = float(np.vdot(want, got)) / size**2
    whole = f"{factor:.4g}" == "1"
    if factor and not whole and np.linalg.norm(got - factor * want) <= near * abs(factor) * size:
        return f"; all of it is {factor:.4g} times the reference"
    if got.ndim == 2 and min(got.shape) > 1:
        turned = got.reshape(got.shape[::-1]).T
        if np.linalg.norm(turned - want) <= near * size:
            return "; it is the reference transposed: columns stand where rows should"
    wrong = np.abs(got - want) > bound * float(np.abs(want).max())
    if 0 < (count := int(wrong.sum())) < got.size:
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"; {count} of {got.size} elements are wrong, the first is {first}"
    return ""


def on_processors() -> ThreadPoolExecutor:
    """Return threads that compare pieces."""
    return ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))


def pieces_of(array: Array) -> list[Array]:
    """Return the elements of an array in pieces that stay in the cache."""
    flat = array.reshape(-1)
    return [flat[first : first + PIECE] for first in range(0, flat.size, PIECE)]


def _difference(got: Array, want: Array) -> Array:
    difference: Array = got.astype(np.float32)
    difference -= want.astype(np.float32, copy=False)
    return np.abs(difference, out=difference)


def _differ(pieces: tuple[Array, Array]) -> tuple[float, ...]:
    """Return the squares' sum, the sum and the largest of the differences, and of the reference."""
    difference, want = _difference(*pieces), np.abs(pieces[1].astype(np.float32, copy=False))
    return tuple(
        float(value)
        for one in (difference, want)
        for value in (np.dot(one, one), one.sum(), one.max())
    )
