"""Where the command line, the kernels and the problems meet: `ferrum-numba`."""

from __future__ import annotations

import gc
import sys

# as a shell says it of Ctrl-C
INTERRUPTED = 130


def main() -> int:
    """Run the command line on the kernels of this house."""
    # compiling allocates so much that a tenth of its time would go into looking for cycles
    gc.set_threshold(50_000)
    try:
        from ferrum_numba import cli, shipped
        from ferrum_numba.kernels import KERNELS, MOE, TOOLS
        from ferrum_numba.kernels.ceilings import CEILINGS
        from ferrum_numba.perf.peers import PEERS
        from ferrum_numba.perf.problems import PROBLEM_SETS

        recorded = shipped.results_folder()
        tools = (*TOOLS, *MOE)
        return cli.main(KERNELS, PROBLEM_SETS, None, CEILINGS, recorded, PEERS, tools=tools)
    except KeyboardInterrupt:
        print("ferrum-numba: stopped before it began", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
