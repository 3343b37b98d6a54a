"""What each lane of a block knows of what the others have done: vector clocks, a row a lane.

A warp counts epochs. What its lanes do between two epochs has the same one; an epoch ends when a
lane has told somebody of it. A lane knows, of every *actor* that may touch memory, the last epoch
that comes before whatever the lane does next. Actors of a block are its lanes, the launch before,
the products of a warpgroup and the copies that an mbarrier counts; an actor is one column.

There are three kinds of knowledge, each implying the one before:

    RAN      it was executed before: enough for what was read, whose value has been used
    SEEN     what it wrote is visible
    PROXIED  and visible to bulk copies and wgmma, the async proxy
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ferrum_numba.interpreter.memory import Array

RAN, SEEN, PROXIED = range(3)
WARP_SIZE = 32
# columns for the mbarriers of a block; more are added where a block has more
_MBARRIERS = 64
# an actor is its block's number times this, plus its column
ACTORS = 1 << 12
_NEVER = np.iinfo(np.int32).max

# what is told: by block number, the epoch that is known of each actor: [3, columns] int32
Message = dict[int, Array]


def merged(messages: Iterable[Message]) -> Message:
    """Return what several messages say together."""
    out: Message = {}
    for message in messages:
        for number, row in message.items():
            known = out.get(number)
            out[number] = row if known is None or known is row else _later(known, row)
    return out


def _later(a: Array, b: Array) -> Array:
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    out: Array = a.copy()
    part = out[:, : b.shape[1]]
    np.maximum(part, b, out=part)
    return out


def only_ran(message: Message) -> Message:
    """Return a message that says what was executed, and nothing of what it wrote."""
    out = {}
    for number, row in message.items():
        out[number] = row.copy()
        out[number][SEEN:] = 0
    return out


class Clocks:
    """The knowledge of all lanes of one block."""

    def __init__(self, number: int, num_threads: int, *, launched_early: bool) -> None:
        self.number = number
        self.num_warps = -(-num_threads // WARP_SIZE)
        lanes = self.num_warps * WARP_SIZE
        self.before = lanes
        self.warpgroups = lanes + 1
        self.num_warpgroups = -(-self.num_warps // 4)
        self.columns = self.warpgroups + self.num_warpgroups
        self.known = np.zeros((3, lanes, self.columns + _MBARRIERS), np.int32)
        # lanes that the last warp lacks are never waited for
        self.known[:, :, num_threads:lanes] = _NEVER
        self.epoch = [1] * self.num_warps
        # whether anybody was told of a warp's epoch, and whether its lanes know all of each other
        self.told = [False] * self.num_warps
        self.joined = [False] * self.num_warps
        # the last epoch of a warp that all of its lanes know to have been executed
        self.joined_epoch = [0] * self.num_warps
        # of other blocks, per lane; lanes that know the same share one message
        self.foreign: list[Message] = [{}] * lanes
        self._least: dict[int, Array] = {}
        own = np.arange(lanes)
        self.known[:PROXIED, own, own] = 1
        if not launched_early:
            self.known[:, :, self.before] = 1

    def add_actor(self) -> int:
        """Return the column of a new actor."""
        if self.columns == self.known.shape[2]:
            more = np.zeros((*self.known.shape[:2], _MBARRIERS), np.int32)
            self.known = np.concatenate([self.known, more], axis=2)
        self.columns += 1
        return self.columns - 1

    def begin(self, warp: int) -> int:
        """Return the epoch of what the warp does next."""
        if self.told[warp]:
            self.told[warp] = False
            self.epoch[warp] += 1
            own = np.arange(WARP_SIZE * warp, WARP_SIZE * (warp + 1))
            self.known[:PROXIED, own, own] = self.epoch[warp]
        self.joined[warp] = False
        return self.epoch[warp]

    def tell(self, thread: Array) -> Message:
        """Return what these lanes, of one warp or several, know; what they do next is not in it."""
        rows = _span(thread)
        message = {self.number: self.known[:, rows].max(axis=1)}
        for warp in _warps(thread):
            self.told[warp] = True
        if any(self.foreign[i] for i in thread.tolist()):
            apart = {id(self.foreign[i]): self.foreign[i] for i in thread.tolist()}
            message = merged([message, *apart.values()])
        return message

    def hear(self, thread: Array, message: Message) -> None:
        """Let these lanes know what a message says."""
        others = message
        own = message.get(self.number)
        if own is not None:
            rows = _span(thread)
            known = self.known[:, rows, : own.shape[1]]
            known = np.maximum(known, own[:, None])
            self.known[:, rows, : own.shape[1]] = known
            others = {number: row for number, row in message.items() if number != self.number}
        if others:
            self._hear_others(thread, others)
        for warp in _warps(thread):
            self.joined[warp] = False
            self._least.pop(warp, None)

    def _hear_others(self, thread: Array, message: Message) -> None:
        done: dict[int, Message] = {}
        for i in thread.tolist():
            old = self.foreign[i]
            if id(old) not in done:
                done[id(old)] = merged([old, message])
            self.foreign[i] = done[id(old)]
        # whoever knows that the launch before has ended tells the other blocks too
        ended = max(int(row[SEEN, self.before]) for row in message.values())
        if ended:
            self.wait_for(thread, self.before, ended)

    def converge(self, thread: Array) -> None:
        """Let the lanes of a warp know what all of them have executed."""
        for warp in _warps(thread):
            if not self.joined[warp]:
                lanes = slice(WARP_SIZE * warp, WARP_SIZE * (warp + 1))
                self.known[RAN, lanes] = self.known[RAN, lanes].max(axis=0)
                self.joined_epoch[warp] = self.epoch[warp]
                self.told[warp] = self.joined[warp] = True
                self._least.pop(warp, None)

    def publish_to_proxy(self, thread: Array) -> None:
        """Let the async proxy see what these lanes see."""
        rows = _span(thread)
        self.known[PROXIED, rows] = self.known[SEEN, rows]
        for warp in _warps(thread):
            self.told[warp] = True

    def wait_for(self, thread: Array, column: int, epoch: int) -> None:
        """Let these lanes see what an actor did up to an epoch.

        Of a copy through the async proxy that is all; of `cp.async` a proxy fence is still missing.
        """
        known = self.known[:PROXIED, :, column]
        rows = _span(thread)
        known[:, rows] = np.maximum(known[:, rows], epoch)
        for warp in _warps(thread):
            self.joined[warp] = False
            self._least.pop(warp, None)

    def least(self, thread: Array, home: Clocks) -> Array:
        """Return [n, rows] int32: what each lane knows all lanes of a warp of `home` executed.

        After the warps come the products of its warpgroups.
        """
        if home is not self:
            rows = {i: _least(self.row(i, home)[RAN][None], home)[0] for i in set(thread.tolist())}
            return np.stack([rows[i] for i in thread.tolist()])
        first, last = int(thread[0]) // WARP_SIZE, int(thread[-1]) // WARP_SIZE
        if first != last:
            return _least(self.known[RAN, thread], home)
        found = self._least.get(first)
        if found is None:
            lanes = slice(WARP_SIZE * first, WARP_SIZE * (first + 1))
            found = self._least[first] = _least(self.known[RAN, lanes], home)
        rest: Array = found[thread - WARP_SIZE * first]
        return rest

    def executed(self, thread: Array, home: Clocks, columns: Array) -> Array:
        """Return what each lane knows some actors of `home` executed: [n, m] as the columns."""
        if home is self:
            found: Array = self.known[RAN, thread[:, None], columns]
            return found
        rows = [self.row(i, home)[RAN] for i in thread.tolist()]
        return np.stack([row[some] for row, some in zip(rows, columns, strict=True)])

    def of(self, kind: int, thread: Array, actor: Array) -> Array:
        """Return the last epoch that each lane knows of an actor: [n] int32."""
        own = actor // ACTORS == self.number
        column = actor % ACTORS
        if own.all():
            found: Array = self.known[kind, thread, column]
            return found
        out = np.zeros(len(thread), np.int32)
        out[own] = self.known[kind, thread[own], column[own]]
        for i in np.flatnonzero(~own).tolist():
            row = self.foreign[int(thread[i])].get(int(actor[i]) // ACTORS)
            if row is not None and column[i] < row.shape[1]:
                out[i] = row[kind, column[i]]
        return out

    def others(self) -> Message:
        """Return what some lane or other knows of other blocks."""
        return merged({id(message): message for message in self.foreign}.values())

    def row(self, thread: int, home: Clocks) -> Array:
        """Return what a lane knows of another block's actors: [3, columns] int32."""
        columns = home.known.shape[2]
        found = self.foreign[thread].get(home.number)
        if found is None:
            return np.zeros((3, columns), np.int32)
        return np.pad(found, ((0, 0), (0, columns - found.shape[1])))


def _least(known: Array, home: Clocks) -> Array:
    lanes = WARP_SIZE * home.num_warps
    warps = known[:, :lanes].reshape(-1, home.num_warps, WARP_SIZE).min(axis=2)
    products = known[:, home.warpgroups : home.warpgroups + home.num_warpgroups]
    return np.concatenate([warps, products], axis=1)


def _span(thread: Array) -> slice | Array:
    """Return lanes in a row as a slice, which NumPy copies less of."""
    first, last = int(thread[0]), int(thread[-1])
    return slice(first, last + 1) if last - first + 1 == len(thread) else thread


def _warps(thread: Array) -> Iterable[int]:
    first, last = int(thread[0]) // WARP_SIZE, int(thread[-1]) // WARP_SIZE
    if first == last:
        return (first,)
    return sorted(set((thread // WARP_SIZE).tolist()))
