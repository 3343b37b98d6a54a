"""Experts apart, to be held against one grid for all: a grid's row for each, or a launch for each.

Both run the programs of grouped_decode on the same list. Neither can know how many blocks a batch
has, so each has one for as many as there can be, and most of them find nothing to do.
"""

from dataclasses import replace

from ferrum_numba.kernels.grouped_decode.kernel import GroupedDecode
from ferrum_numba.kernels.shared.work_list import max_blocks


class ExpertBuckets(GroupedDecode):
    """One launch, whose grid has a row for every block that the list can have."""

    name = "expert_buckets"
    summary = "experts apart in one launch: a row of the grid for every block there can be"
    models_shapes = False

    @property
    def made_by(self):
        """The kernel whose programs these are."""
        return GroupedDecode()

    def configs(self, gpu):
        """Return a config for each size of a block, and a wider one."""
        shapes = {(8, 2, 4), (8, 4, 2), (16, 2, 3), (32, 1, 4)}
        plain = [c for c in super().configs(gpu) if not (c.direct or c.whole or c.buckets)]
        wide = [c for c in plain if c.step_k == 128 and (c.tile_m, c.warps_n, c.warps_k) in shapes]
        narrow = [c for c in plain if c.step_k == 64 and (c.warps_n, c.warps_k) == (1, 2)]
        return tuple(replace(c, buckets=True) for c in (*wide, *narrow))

    def corners(self):
        """Return none: the programs are checked where they are those of grouped_decode."""
        return ()

    def default(self, problem, gpu):
        """Return the first that fits."""
        return next(self.fitting(problem, gpu))


class ExpertLoop(ExpertBuckets):
    """A launch for every block that the list can have, one after the other."""

    name = "expert_loop"
    summary = "experts apart: a launch for every block there can be, one after the other"

    def launch(self, config, problem, gpu):
        """Return a full GPU for one block of the list, and the same for each of the others."""
        launch = super().launch(config, problem, gpu)
        blocks = max_blocks(problem.num_pairs, problem.num_experts, config.tile_m)
        one, units = self.cut(config, problem, gpu, rows=1)
        return replace(
            launch,
            grid=(one, 1, 1),
            scalars={**launch.scalars, "stripe_units": units // one, "longer_stripes": units % one},
            workspace={"slots": one * config.partial_bytes},
            repeats=tuple({"first_block": block} for block in range(1, blocks)),
        )
