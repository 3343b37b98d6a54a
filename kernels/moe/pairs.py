"""Rows of pairs, eight columns a thread: what the kernels that go over them have alike."""

import numpy as np

from ferrum_numba.contract import Launch
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.moe.align_tokens import AlignProblem
from ferrum_numba.kernels.moe.chained import ChainedKernel, even_threads
from ferrum_numba.kernels.w4a16 import MOST

# columns of a thread: 16 bytes of 2
COLUMNS = 8
MOST_THREADS = 256


class RowsOfPairs:
    """A problem with tokens, num_experts, top_k, num_ids and dropped of a routing, and columns."""

    def __post_init__(self):
        # refuses what no routing can be
        _ = self.routing
        if not 1 <= self.columns <= MOST or self.columns % COLUMNS:
            raise ProblemError(
                f"columns must be a multiple of {COLUMNS} up to {MOST}; got {self.columns}"
            )

    @property
    def routing(self):
        """Ids of such tokens."""
        return AlignProblem(
            self.tokens, self.num_experts, self.top_k, num_ids=self.num_ids, dropped=self.dropped
        )


class PairsKernel(ChainedKernel):
    """A kernel whose grid has a row for each pair."""

    def default(self, problem, gpu):
        """Return blocks that share the columns evenly."""
        num_threads = even_threads(problem.columns // COLUMNS, MOST_THREADS)
        return self.fitted(self.config(num_threads), problem, gpu)

    def prepare(self, problem, inputs):
        """Return the inputs, and the map or nothing."""
        return {"expert_map": np.zeros(1, np.int32), **inputs}

    def scalars(self, problem):
        """Return the sizes that each takes."""
        return {
            "num_pairs": problem.routing.num_pairs,
            "columns": problem.columns,
            "num_experts": problem.num_experts,
            "num_ids": problem.routing.most_ids,
            "has_map": int(problem.num_ids > 0),
        }

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns of a pair."""
        blocks = ceil_div(problem.columns, COLUMNS * config.num_threads)
        grid = (problem.routing.num_pairs, blocks, 1)
        return Launch(grid, self.scalars(problem), programmatic=config.programmatic)
