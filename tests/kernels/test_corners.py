"""What `check` runs by default reaches all that a design does: rings that wrap, sums handed over.

Read off the launches, as the device programs cut them: default problems on which one of these
happens nowhere hide whatever is wrong there.
"""

from collections import Counter
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from ferrum_numba.cases import cases_of
from ferrum_numba.division import ceil_div
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import GROUPED, KERNELS, PACKED
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.reference.moe import align_tokens

H200 = KNOWN["h200"]
NAMED = {kernel.name: kernel for kernel in KERNELS}


class Cut(NamedTuple):
    """How a launch cuts its steps.

    stripes: the steps that each block has of each slice it has a part of
    k_steps: steps of a slice
    case:    which it is
    """

    stripes: list[list[int]]
    k_steps: int
    case: object

    @property
    def most_steps(self):
        """Steps of the block that has most of one slice, or of several."""
        return max(sum(parts) for parts in self.stripes)

    @property
    def blocks_of_a_slice(self):
        """The most blocks that share a slice."""
        slices, at = Counter(), 0
        for parts in self.stripes:
            for steps in parts:
                slices[at // self.k_steps] += 1
                at += steps
        return max(slices.values())

    @property
    def most_slices(self):
        """The most slices of a block."""
        return max(len(parts) for parts in self.stripes)


def cut(bounds, k_steps, case):
    """Return the cut of stripes with these bounds, of which each but the first begins the next."""
    stripes = []
    for first, end in pairwise(bounds):
        edges = [first, *range((first // k_steps + 1) * k_steps, end, k_steps), end]
        stripes.append([b - a for a, b in pairwise(edges)])
    return Cut(stripes, k_steps, case)


def equal(total, stripe_steps):
    return [*range(0, total, stripe_steps), total]


@cache
def cuts(name):
    """Return the cuts of a design's default cases that have stripes."""
    return list(_cuts(name))


def _cuts(name):
    for case in cases_of(NAMED[name], H200):
        launch = case.kernel.launch(case.config, case.problem, case.gpu)
        if case.kernel in GROUPED:
            yield grouped(case, launch)
            continue
        K, N = stored_shape(case.problem)
        config, stripe_steps = case.config, launch.scalars["stripe_steps"]
        k_steps = ceil_div(K, config.step_k if name == "decode" else config.tile_k)
        width = config.unit_n if name == "prefill" else config.tile_n
        slices = ceil_div(N, width)
        # these two have all tiles of rows in one row of the grid
        if name in ("marlin", "prefill"):
            slices *= ceil_div(case.problem.M, config.tile_m)
        if name == "prefill":
            slices = launch.scalars["striped_tiles"]
        if stripe_steps and slices and getattr(config, "cluster", 1) == 1:
            yield cut(equal(slices * k_steps, stripe_steps), k_steps, case)


def grouped(case, launch):
    """Return the cut of a grouped launch, which the device makes of the list."""
    inputs = case.kernel.op.make_inputs(case.problem, np.random.default_rng(0))
    config, (K, N) = case.config, stored_shape(case.problem.expert)
    work_list = align_tokens(inputs["ids"], case.problem.num_experts, config.tile_m)
    blocks = (
        case.problem.num_pairs
        if getattr(config, "direct", False)
        else int(work_list["num_blocks"][0])
    )
    tiles = blocks * ceil_div(N, config.tile_n)
    if case.kernel.name == "grouped_wgmma":
        k_steps, grid = K // config.tile_k, launch.grid[0]
        striped = tiles - max(0, tiles // grid - 1) * grid if config.stripes and tiles % grid else 0
        if not striped:
            return Cut([[k_steps] * (tiles // grid)], k_steps, case)
        return cut(equal(striped * k_steps, ceil_div(striped * k_steps, grid)), k_steps, case)
    k_steps = K // config.step_k
    if config.buckets:
        tiles = N // config.tile_n
    unit = k_steps if config.whole else 1
    each, longer = divmod(tiles * k_steps // unit, launch.grid[0])
    lengths = [(each + (i < longer)) * unit for i in range(launch.grid[0])]
    return cut([0, *np.cumsum([n for n in lengths if n]).tolist()], k_steps, case)


STRIPED = [kernel.name for kernel in (*PACKED, *GROUPED)]


@pytest.mark.parametrize("name", STRIPED)
def test_sums_are_handed_over(name):
    found = cuts(name)
    shared = max(one.blocks_of_a_slice for one in found)
    assert shared >= 3, "a slice of two blocks hides which of the others is meant"
    # a block that ends one slice, and begins another that it does not end
    assert any(
        one.most_slices > 1 and any(len(p) > 1 and p[-1] < one.k_steps for p in one.stripes)
        for one in found
    )


@pytest.mark.parametrize("name", STRIPED)
def test_a_block_has_whole_slices_between_others(name):
    assert any(
        any(one.k_steps in parts[1:] for parts in one.stripes if len(parts) > 1)
        for one in cuts(name)
    )


@pytest.mark.parametrize("name", ["marlin", "decode_wgmma", "prefill", "grouped_wgmma"])
def test_a_ring_wraps_twice(name):
    assert any(
        one.most_steps // getattr(one.case.config, "num_warpgroups", 1)
        > 2 * one.case.config.num_stages
        for one in cuts(name)
    )


@pytest.mark.parametrize("name", ["decode", "grouped_decode"])
def test_both_slots_of_a_warp_are_used_again(name):
    assert any(
        max(max(parts) for parts in one.stripes) > 4 * one.case.config.warps_k for one in cuts(name)
    )


def test_a_ring_of_the_general_design_wraps_in_shares_of_unequal_length():
    shares = [
        (ceil_div(case.problem.K, case.config.tile_k), case.config.split_k, case.config.num_stages)
        for case in cases_of(NAMED["w4a16_gptq"], H200)
    ]
    assert any(
        split > 1 and k_steps % split and k_steps // split > 2 * stages
        for k_steps, split, stages in shares
    )


def test_whole_tiles_of_prefill_wrap_its_ring_and_come_in_bands():
    cases = [case for case in cases_of(NAMED["prefill"], H200) if not case.config.stripes]
    steps = [stored_shape(case.problem)[0] // case.config.tile_k for case in cases]
    assert any(n > case.config.num_stages for n, case in zip(steps, cases, strict=True))
    assert any(ceil_div(case.problem.M, case.config.tile_m) > case.config.raster for case in cases)


def test_some_rows_of_prefill_fill_their_tiles_and_some_do_not():
    """Where none are cleared, no fence after it covers for one that is missing."""
    assert {
        case.problem.M % case.config.tile_m == 0 for case in cases_of(NAMED["prefill"], H200)
    } == {True, False}
    assert any(case.config.tile_m == case.problem.M for case in cases_of(NAMED["prefill"], H200))


@pytest.mark.parametrize("name", ["decode", "prefill"])
def test_clusters_are_of_two_and_more_blocks(name):
    assert {2, 3, 4} & {case.config.cluster for case in cases_of(NAMED[name], H200)} != {2}


def test_prefill_has_pairs_and_scaled_sums_with_stripes_and_without():
    configs = [case.config for case in cases_of(NAMED["prefill"], H200)]
    assert {(c.pair, c.stripes) for c in configs} == {
        (pair, stripes) for pair in (True, False) for stripes in (True, False)
    }
    assert any(c.scale_sums for c in configs)


# fields whose values are programs of another structure, or tiles of other widths
STRUCTURE = {
    "decode": ("tile_m", "warps_n", "step_k", "early"),
    "decode_wgmma": ("tile_m", "num_warpgroups", "tile_k", "in_flight", "early"),
    "marlin": ("tile_m", "tile_n", "tile_k", "num_warps"),
    "prefill": ("tile_n", "stripes", "cluster", "pair", "scale_sums"),
    "w4a16_gptq": ("tile_m", "tile_n", "tile_k", "num_stages", "split_k"),
    "grouped_decode": ("tile_m", "step_k", "whole", "buckets", "direct"),
    "grouped_wgmma": ("tile_n", "stripes", "scale_sums"),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_each_kind_of_program_is_checked(name):
    chosen = [case.config for case in cases_of(NAMED[name], H200)]
    for field in STRUCTURE[name]:
        space = {getattr(config, field) for config in NAMED[name].configs(H200)}
        assert space <= {getattr(config, field) for config in chosen}, field


@pytest.mark.parametrize("name", ["prefill", "grouped_wgmma"])
def test_tiles_leave_in_one_part_to_four(name):
    parts = {ceil_div(c.config.tile_m, c.config.part_rows) for c in cases_of(NAMED[name], H200)}
    assert {1, 2, 3, 4} - parts <= {2}


@pytest.mark.parametrize("name", ["prefill", "grouped_wgmma"])
def test_wide_tiles_have_scaled_weights_and_scaled_sums(name):
    chosen = [case.config for case in cases_of(NAMED[name], H200)]
    space = {(config.tile_n, config.scale_sums) for config in NAMED[name].configs(H200)}
    assert space <= {(config.tile_n, config.scale_sums) for config in chosen}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_corner_can_be_run(kernel):
    problems = [problem for problem in kernel.op.tests if kernel.refuses(problem) is None]
    assert len(list(cases_of(kernel, H200))) == len(problems) + len(kernel.corners())


def test_a_corner_is_left_out_where_its_config_does_not_fit():
    """A config of a new GPU must not fail the check on an old one."""
    decode, old = NAMED["decode"], KNOWN["a100"]
    assert any(corner.config.cluster > 1 for corner in decode.corners())
    assert all(case.config.cluster == 1 for case in cases_of(decode, old))
