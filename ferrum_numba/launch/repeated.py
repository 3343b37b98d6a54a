"""Launches on other buffers with every call: addresses are all that a call writes."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum_numba.contract import Launch, Matmul
from ferrum_numba.launch import cublas
from ferrum_numba.launch.arguments import Arguments, pack, refused
from ferrum_numba.launch.interop import pointer, stream_handle

if TYPE_CHECKING:
    from ferrum_numba.launch.kernel import Loaded


class Order:
    """The order in which a launch is given addresses: two as numbers, the others packed in bytes.

    What changes with every call is given as numbers, what is the same again as bytes.

    names:   of the buffers, two or more
    renamed: name of a buffer by the parameter that takes it, where they differ

    count:   of the addresses
    index:   which of them a parameter takes, by its name
    """

    def __init__(
        self, names: Sequence[str], renamed: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.count = len(names)
        self.index = {name: i for i, name in enumerate(names)}
        self.index |= {name: self.index[buffer] for name, buffer in renamed.items()}
        self.struct = struct.Struct(f"=2Q{8 * (self.count - 2)}s")

    @staticmethod
    def packed(addresses: Iterable[int]) -> bytes:
        """Return addresses as they are given in bytes."""
        return b"".join(address.to_bytes(8, "little") for address in addresses)


class _OfThread(threading.local):
    """The arguments of a repeated launch, of each thread its own: none waits for another's."""

    def __init__(self, make: Callable[[], tuple[Any, ...]]) -> None:
        self.ready = make()


class Repeated:
    """One launch on other buffers with every call, by any thread.

    Call it with a stream's handle and the addresses in an order; not all need be the launch's.
    """

    __slots__ = ("_launch", "_loaded", "_of_thread")

    def __init__(self, loaded: Loaded, launch: Launch, order: Order) -> None:
        """Prepare a launch.

        Raises:
            LaunchError: a buffer or a scalar of the launch is missing.
        """
        parameters, count = loaded.binary.parameters, order.count
        values = pack(parameters, launch.scalars, dict.fromkeys(order.index, 0))
        # the addresses, and behind them the scalars: what changes is written at once
        slots = np.concatenate([np.zeros(count, np.uint64), values])
        places = [
            order.index[p.name] if p.kind == "pointer" else count + i
            for i, p in enumerate(parameters)
        ]

        def ready() -> tuple[Any, ...]:
            own = slots.copy()
            arguments = Arguments(loaded, launch, own, places)
            launcher, passed = arguments.launcher, arguments.passed
            return (
                order.struct.pack_into, own.data, arguments.stream, launcher, passed, arguments,
            )  # fmt: skip

        self._of_thread = _OfThread(ready)
        self._loaded, self._launch = loaded, launch

    def __call__(self, stream: int, first: int, second: int, others: bytes) -> None:
        """Launch on a stream.

        Raises:
            LaunchError: the driver refused.
        """
        # the driver has read the arguments when the launch returns
        write, slots, place, launch, arguments, _ = self._of_thread.ready
        write(slots, 0, first, second, others)
        place.value = stream
        status = launch(*arguments)
        if status:
            raise refused(status, self._loaded, self._launch)


class Followed:
    """A launch and cuBLAS's product after it, on other buffers with every call, by any thread.

    Call it as a `Repeated`.
    """

    __slots__ = ("_cublas", "_first", "_matmul", "_others", "_pick")

    def __init__(
        self, first: Repeated, matmul: Matmul, order: Order, library: cublas.Cublas
    ) -> None:
        self._first, self._matmul, self._cublas = first, matmul, library
        self._others = struct.Struct(f"={order.count - 2}Q").unpack
        self._pick = itemgetter(*(order.index[name] for name in matmul.buffers))

    def __call__(self, stream: int, first: int, second: int, others: bytes) -> None:
        """Launch both on a stream.

        Raises:
            LaunchError: the driver or cuBLAS refused.
        """
        self._first(stream, first, second, others)
        self._cublas(stream, self._matmul, self._pick((first, second, *self._others(others))))


class InTurn:
    """Launches of one program, one after the other; call it as one of them."""

    __slots__ = ("_launches",)

    def __init__(self, launches: Iterable[Callable[..., None]]) -> None:
        self._launches = tuple(launches)

    def __call__(self, *of_call: Any) -> None:
        """Launch all of them."""
        for launch in self._launches:
            launch(*of_call)


class Fixed:
    """A launch and cuBLAS's product after it, on buffers that it keeps alive."""

    __slots__ = ("_addresses", "_both", "_keep")

    def __init__(
        self, both: Repeated | Followed, names: Sequence[str], buffers: Mapping[str, Any]
    ) -> None:
        self._both = both
        first, second, *others = (pointer(buffers[name]) for name in names)
        self._addresses = first, second, Order.packed(others)
        self._keep = tuple(buffers.values())

    def __call__(self, stream: Any) -> None:
        """Launch both on a stream: an int handle or any library's stream object."""
        self._both(stream_handle(stream), *self._addresses)
