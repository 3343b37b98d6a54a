"""The detector: what the blocks of a launch do, ordered by happens-before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from greenlet import getcurrent

from ferrum_numba.interpreter.barriers import Barrier, Mbarrier
from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.operands import Vector
from ferrum_numba.interpreter.races import report
from ferrum_numba.interpreter.races.clocks import (
    ACTORS,
    RAN,
    SEEN,
    WARP_SIZE,
    Message,
    merged,
    only_ran,
)
from ferrum_numba.interpreter.races.copies import Copies
from ferrum_numba.interpreter.races.launch import Record
from ferrum_numba.interpreter.races.registers import Sums
from ferrum_numba.interpreter.races.shadow import WEAK, Past
from ferrum_numba.interpreter.races.text import fault_of
from ferrum_numba.interpreter.races.unwatched import ACQ_REL, RELAXED, RELEASE

if TYPE_CHECKING:
    from ferrum_numba.interpreter.block import Block
    from ferrum_numba.interpreter.rebind import SharedArray
    from ferrum_numba.interpreter.warp import Group


class Watch(Record):
    """A launch whose blocks are watched."""

    def block(self, block: Block) -> BlockWatch:
        """Return what watches a block that begins."""
        self.blocks.append(block.index)
        return BlockWatch(self, block, len(self.blocks) - 1)


class BlockWatch(Copies):
    """What one watched block does."""

    def __init__(self, launch: Record, block: Block, number: int) -> None:
        super().__init__(launch, block, number)
        self._fenced: dict[int, Message] = {}
        self._to_acquire: dict[int, Message] = {}
        self._made: dict[int, list[Mbarrier]] = {}
        self._maps: dict[int, list[tuple[int, int, int]]] = {}

    # instructions

    def enter(self, group: Group) -> None:
        self.launch.group = group
        scope = group.plan.scope
        if scope == "lane":
            return
        thread = np.array([lane.thread for lane in group.lanes])
        self.clocks.converge(thread)
        if "wgmma." in group.plan.text and group.operands is None:
            self._enter_product(group)

    def _enter_product(self, group: Group) -> None:
        if "desc_b" in group.plan.names and "scale_d" in group.plan.names:
            products = self._products(group.lanes[0].thread)
            products.check(group.requests[0], group.plan.names)
        fault = fault_of(group.plan.text)
        if fault is not None:
            raise report.RaceFault(fault)
        group.requests = [tuple(map(_held, request)) for request in group.requests]

    def leave(self, group: Group, results: Sequence[Any]) -> Sequence[Any]:
        thread = group.lanes[0].thread
        products = self._products(thread)
        if group.plan.scope != "warpgroup":
            if thread % WARP_SIZE == 0:
                products.fresh[thread // WARP_SIZE % 4].add(results)
            return results
        if "acc" not in group.plan.names or group.plan.result is None:
            return results
        return [Sums(np.asarray(one), products, products.last) for one in results]

    # static shared arrays

    def element(self, array: SharedArray, index: Any, *, writes: bool) -> None:
        lane = getcurrent()
        thread = np.array([lane.thread])
        epoch = self.clocks.begin(lane.thread // WARP_SIZE)
        site = self.launch.line(sys._getframe(2))
        wrote, reads = array.marks.setdefault(index, ({}, {}))
        place, verb = f"{array.name}[{index}]", "writes" if writes else "reads"
        before = [(SEEN, True, wrote)] + ([(RAN, False, reads)] if writes else [])
        for kind, did_write, accesses in before:
            for actor, (last, where) in accesses.items():
                if self.clocks.of(kind, thread, np.array([actor]))[0] < last:
                    past = Past(actor, where, WEAK, did_write)
                    raise report.conflict(self, past, place, verb, lane.thread)
        own = self.clocks.number * ACTORS + lane.thread
        if writes:
            reads.clear()
            wrote.clear()
        (wrote if writes else reads)[own] = epoch, site

    # atomics and fences

    def update(self, thread: Array, address: Array, order: str) -> None:
        for i in range(len(thread)):
            lane = thread[i : i + 1]
            self.write_global(lane, address[i : i + 1], np.zeros((1, 4), np.uint8), strong=True)
            if order in (ACQ_REL, RELAXED):
                self.acquire(lane, address[i : i + 1], now=order == ACQ_REL)
            self._release(int(lane[0]), int(address[i]), order, goes_on=True)

    def acquire(self, thread: Array, address: Array, *, now: bool = True) -> None:
        for i, place in zip(thread.tolist(), address.tolist(), strict=True):
            message = self.launch.released.get(place)
            if message is None:
                continue
            if now:
                self.clocks.hear(np.array([i]), message)
            else:
                self._to_acquire[i] = merged([self._to_acquire.get(i, {}), message])

    def release(self, thread: Array, address: Array) -> None:
        for i, place in zip(thread.tolist(), address.tolist(), strict=True):
            self._release(i, place, RELEASE, goes_on=False)

    def _release(self, thread: int, address: int, order: str, *, goes_on: bool) -> None:
        message = self._fenced.get(thread, {})
        if order in (RELEASE, ACQ_REL):
            message = self.clocks.tell(np.array([thread]))
        if goes_on:
            message = merged([self.launch.released.get(address, {}), message])
        self.launch.released[address] = message

    def fence(self, thread: Array) -> None:
        for i in thread.tolist():
            lane = np.array([i])
            if i in self._to_acquire:
                self.clocks.hear(lane, self._to_acquire.pop(i))
            self._fenced[i] = self.clocks.tell(lane)

    def fence_proxy(self, thread: Array) -> None:
        self.clocks.publish_to_proxy(thread)
        self.fence_init(thread)

    def sync_warp(self, thread: Array) -> None:
        self.clocks.hear(thread, self.clocks.tell(thread))

    def wait_for_launch(self, thread: Array) -> None:
        self.clocks.wait_for(thread, self.clocks.before, 1)

    # barriers

    def arrive(self, barrier: Barrier | Mbarrier, thread: Array, *, orders: bool = True) -> None:
        message = self.clocks.tell(thread)
        if not orders:
            message = only_ran(message)
        barrier.gathered = merged([barrier.gathered, message])

    def leave_barrier(self, barrier: Barrier, thread: Array) -> None:
        self.clocks.hear(thread, barrier.released)

    def pass_phase(self, bar: Mbarrier, thread: Array) -> None:
        if bar.released:
            self.clocks.hear(thread, bar.released)
        self.clocks.wait_for(thread, bar.actor % ACTORS, bar.phases)

    def made(self, bar: Mbarrier, thread: Array) -> None:
        bar.actor = self.clocks.number * ACTORS + self.clocks.add_actor()
        bar.maker = int(thread[0]), self.clocks.begin(int(thread[0]) // WARP_SIZE)
        self._made.setdefault(bar.maker[0], []).append(bar)

    def uses(self, bar: Mbarrier, thread: Array, *, copies: bool = False) -> None:
        maker, epoch = bar.maker
        actor = np.full(len(thread), bar.actor // ACTORS * ACTORS + maker)
        same = thread[0] == maker and bar.actor // ACTORS == self.clocks.number
        kind = RAN if bar.fenced else SEEN
        known = self.clocks.of(kind, thread, actor)
        if not same and (known < epoch).any():
            row = int(np.flatnonzero(known < epoch)[0])
            raise report.unseen_mbarrier(maker, row, fenced=bar.fenced)
        if copies and not bar.fenced:
            raise report.unfenced_mbarrier(maker, self._row(int(thread[0])))

    def fence_init(self, thread: Array) -> None:
        for i in thread.tolist():
            for bar in self._made.get(i, ()):
                bar.fenced = True

    # tensor maps

    def publish_map(self, thread: Array, address: int) -> None:
        self.launch.maps[address] = self.launch.maps.get(address, 0) + 1

    def acquire_map(self, thread: Array, address: Array) -> None:
        epoch = self.clocks.begin(int(thread[0]) // WARP_SIZE)
        for i, place in zip(thread.tolist(), address.tolist(), strict=True):
            times = self.launch.maps.get(place, 0)
            self._maps.setdefault(place, []).append((times, i, epoch))

    def uses_map(self, thread: Array, address: Array) -> None:
        for row, (i, place) in enumerate(zip(thread.tolist(), address.tolist(), strict=True)):
            times = self.launch.maps.get(place, 0)
            known = self.clocks.known[SEEN, i]
            if times and not any(
                t == times and known[lane] >= epoch for t, lane, epoch in self._maps.get(place, ())
            ):
                raise report.map_not_acquired(row)

    # products

    # each of these is `.sync`, also where it stands in the text of a longer instruction

    def fence_products(self, thread: Array) -> None:
        self.clocks.converge(thread)
        self._products(int(thread[0])).fence()

    def commit_products(self, thread: Array) -> None:
        self.clocks.converge(thread)
        self._products(int(thread[0])).commit()

    def wait_products(self, thread: Array, pending: int) -> None:
        self.clocks.converge(thread)
        group = int(thread[0]) // (4 * WARP_SIZE)
        ended = self.products[group].wait(pending)
        if ended > 0:
            self.clocks.wait_for(thread, self.clocks.warpgroups + group, ended)


def _held(operand: Any) -> Any:
    """Return the values of sums of wgmma for an instruction that goes on with them."""
    return Vector(operand.in_flight()) if isinstance(operand, Sums) else operand
