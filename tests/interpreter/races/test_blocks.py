"""Races between blocks: counters, clusters, and the launch before."""

import numpy as np
import pytest
from numba import cuda
from numba.cuda import uint32
from planted import assert_found, at, word

from ferrum_numba import ptx
from ferrum_numba.ptx.asynchronous import (
    fence_mbarrier_init,
    mbarrier_arrive_cluster_if,
    mbarrier_init,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_acquire_gpu,
    ld_global_u32,
    ld_shared_u32,
    red_add_relaxed_gpu,
    red_add_release_gpu,
    st_global_u32,
    st_release_gpu,
    st_shared_u32,
)
from ferrum_numba.ptx.special import block_id, cluster_ctarank, smem_base
from ferrum_numba.ptx.sync import (
    cluster_arrive,
    cluster_arrive_relaxed,
    cluster_wait,
    fence_acq_rel_gpu,
    griddepcontrol_wait,
    ld_shared_cluster_u32,
    mapa,
    st_shared_cluster_u32,
)

RELEASE = "a release by the one"


def handed_over(barrier=True, release="release", acquire=True, then_barrier=True):
    """Return a kernel whose block 0 hands sums to block 1 through global memory."""

    def kernel(counter, sums, out, n):
        tid = uint32(cuda.threadIdx.x)
        if block_id() == 0:
            st_global_u32(at(sums, tid), tid)  # first
            if barrier:
                cuda.syncthreads()
            if tid == 0:
                if release == "release":
                    red_add_release_gpu(counter, uint32(1))
                elif release == "fence":
                    fence_acq_rel_gpu()
                    red_add_relaxed_gpu(counter, uint32(1))
                elif release == "store":
                    st_release_gpu(counter, uint32(1))
                else:
                    red_add_relaxed_gpu(counter, uint32(1))
        else:
            if tid == 0:
                while ld_acquire_gpu(counter) == 0:
                    pass
            if then_barrier:
                cuda.syncthreads()
            else:
                while ld_acquire_gpu(at(counter, 1 + tid)) == 0:
                    pass
            st_global_u32(at(out, tid), ld_global_u32(at(sums, tid)))  # second

    return kernel


SHARED = {"grid": 2, "co_resident": True}


def hand_over(missing, **fault):
    """Assert that a fault of `handed_over` is found."""
    others = np.ones(128, np.uint32)
    others[0] = 0
    arrays = {"counter": others, "sums": np.zeros(64, np.uint32)}
    assert_found(
        lambda sound: handed_over() if sound else handed_over(**fault), "read-after-write",
        missing, **SHARED, **{name: a.copy() for name, a in arrays.items()},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _counters_begin_at_zero(monkeypatch):
    """Run each kernel of a test on its own copy of the arrays."""
    import planted

    plain = planted.execute

    def fresh(kernel, **how):
        arrays = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in how.items()}
        return plain(kernel, **arrays)

    monkeypatch.setattr(planted, "execute", fresh)


def test_sums_published_before_all_warps_stored_theirs():
    hand_over(RELEASE, barrier=False)


def test_a_counter_that_releases_nothing():
    hand_over(RELEASE, release="relaxed")


def test_who_has_not_met_the_thread_that_acquired():
    hand_over(RELEASE, then_barrier=False)


@pytest.mark.parametrize("release", ["release", "fence", "store"])
def test_ways_to_release(release):
    import planted

    planted.execute(
        handed_over(release=release), **SHARED,
        counter=np.zeros(1, np.uint32), sums=np.zeros(64, np.uint32),
    )  # fmt: skip


def test_the_last_block_resets_a_counter_that_all_have_counted():
    def make(sound):
        def kernel(counter, out, n):
            tid = uint32(cuda.threadIdx.x)
            if tid == 0:
                if sound:
                    if atom_add_acq_rel_gpu(counter, uint32(1)) == 3:
                        st_global_u32(counter, uint32(0))
                else:
                    red_add_relaxed_gpu(counter, uint32(1))  # first
                    if block_id() == 3:
                        st_global_u32(counter, uint32(0))  # second

        return kernel

    assert_found(
        make, "write-after-write", RELEASE, grid=4, num_threads=32,
        counter=np.zeros(1, np.uint32),
    )  # fmt: skip


def test_two_blocks_that_write_the_same_word():
    def make(sound):
        def kernel(out, n):
            tid = uint32(cuda.threadIdx.x)
            first = block_id() * n if sound else block_id() * (n - 1)
            st_global_u32(at(out, first + tid), tid)  # first # second

        return kernel

    assert_found(make, "write-after-write", RELEASE, grid=2, num_threads=32)


def in_cluster(arrive=True, relaxed=False, last=True):
    """Return a kernel whose two blocks read each other's shared memory."""

    def kernel(out, n):
        smem, tid = smem_base(), uint32(cuda.threadIdx.x)
        rank = cluster_ctarank()
        if arrive:
            st_shared_u32(word(smem, tid), tid)  # first
        if relaxed:
            cluster_arrive_relaxed()
        else:
            cluster_arrive()
        cluster_wait()
        theirs = mapa(word(smem, tid), uint32(rank ^ 1))
        value = ld_shared_cluster_u32(theirs)  # second
        if last:
            cluster_arrive()
            cluster_wait()
        st_global_u32(at(out, rank * n + tid), value)

    return kernel


CLUSTER = {"grid": 2, "cluster": 2, "num_threads": 32}


def test_a_cluster_barrier_that_orders_nothing():
    assert_found(
        lambda sound: in_cluster(relaxed=not sound), "read-after-write", "cluster_arrive", **CLUSTER
    )


def test_a_block_that_leaves_while_another_reads_its_memory():
    assert_found(
        lambda sound: in_cluster(last=sound),
        "shared memory",
        r"cluster_arrive\(\)",
        marks=("# second",),
        **CLUSTER,
    )


def test_an_arrival_in_another_block_orders_no_writes():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            bar, rank = uint32(smem + 1024), cluster_ctarank()
            if tid == 0:
                mbarrier_init(bar, uint32(32))
                fence_mbarrier_init()
            cluster_arrive()
            cluster_wait()
            if rank == 1:
                there = mapa(word(smem, tid), uint32(0))
                st_shared_cluster_u32(there, tid)  # first
                if not sound:
                    mbarrier_arrive_cluster_if(mapa(bar, uint32(0)), uint32(1))
            if sound:
                cluster_arrive()
                cluster_wait()
            if rank == 0:
                if not sound:
                    mbarrier_wait(bar, uint32(0))
                st_global_u32(at(out, tid), ld_shared_u32(word(smem, tid)))  # second
            cluster_arrive()
            cluster_wait()

        return kernel

    assert_found(make, "read-after-write", "cluster_arrive", **CLUSTER)


EARLY = {"programmatic": True, "constant": {"weights"}, "num_threads": 64, "grid": 2}


@pytest.mark.parametrize("place", ["x", "out", "sums", "some threads", "some blocks"])
def test_what_the_launch_before_may_still_use(place):
    """It may write x, read and write out, and use the same workspace; weights are constant."""

    def make(sound):
        def kernel(x, weights, sums, out, n):
            tid = uint32(cuda.threadIdx.x)
            mine = block_id() * n + tid
            weight = ld_global_u32(at(weights, tid))
            if place == "some threads" and not sound:
                if tid == 0:
                    griddepcontrol_wait()
            elif place == "some blocks" and not sound:
                if block_id() == 0:
                    griddepcontrol_wait()
            elif sound:
                griddepcontrol_wait()
            if place == "sums":
                st_global_u32(at(sums, mine), weight)  # second
            if place == "out":
                st_global_u32(at(out, mine), weight)  # second
            if place not in ("sums", "out"):
                weight = uint32(weight + ld_global_u32(at(x, tid)))  # second
            if not sound:
                griddepcontrol_wait()
            st_global_u32(at(out, mine), weight)

        return kernel

    what = place if place in ("out", "sums") else "x"
    arrays = {name: np.zeros(256, np.uint32) for name in ("x", "weights", "sums")}
    message = assert_found(
        make, f"buffer {what}, which the launch before", "griddepcontrol_wait", **EARLY, **arrays
    )
    assert "writing" in message


def test_one_thread_may_wait_for_the_block():
    import planted

    def kernel(x, weights, out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid == 0:
            griddepcontrol_wait()
        cuda.syncthreads()
        st_global_u32(at(out, block_id() * n + tid), ld_global_u32(at(x, tid)))

    arrays = {name: np.zeros(256, np.uint32) for name in ("x", "weights")}
    planted.execute(kernel, **EARLY, **arrays)


def test_an_acquire_by_a_fence():
    def make(sound):
        def kernel(counter, sums, out, n):
            tid = uint32(cuda.threadIdx.x)
            st_global_u32(at(sums, block_id() * n + tid), tid)  # first
            cuda.syncthreads()
            if tid == 0:
                if sound:
                    last = atom_add_acq_rel_gpu(counter, uint32(1))
                else:
                    red_add_relaxed_gpu(counter, uint32(1))
                    last = block_id()
                st_shared_u32(smem_base(), last)
            cuda.syncthreads()
            if ld_shared_u32(smem_base()) == 1:
                ptx.fence_acq_rel_gpu()
                st_global_u32(at(out, tid), ld_global_u32(at(sums, tid)))  # second

        return kernel

    assert_found(
        make, "read-after-write", RELEASE, grid=2, counter=np.zeros(1, np.uint32),
        sums=np.zeros(128, np.uint32),
    )  # fmt: skip
