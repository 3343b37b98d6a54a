"""How long the GPU will be held for what was planned: a rule of thumb, for a plan to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ferrum_numba.results import Planned
from ferrum_numba.tune.searchers import FIRST, SMALL, STEP

# of a heat: to load, check and capture it, s; what it replays, s at least and in calls
CHECK_S, HEAT_S, HEAT_CALLS = 0.02, 0.03, 100
# of a final: so many meet, in so many rounds, each for so long at least and in calls
FINALISTS, ROUNDS, ROUND_S, ROUND_CALLS = 8, 16, 0.006, 20


def heats_of(num_configs: int) -> int:
    """Return how many configs of a kernel are measured on a problem, as `auto` searches."""
    return num_configs if num_configs <= SMALL else FIRST + 2 * STEP


def expected_s(rows: Iterable[Planned]) -> float:
    """Return the seconds that the GPU is expected to be held for a plan's candidates."""
    pools: dict[object, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.estimate_us is not None:
            problem = (row.op, tuple(sorted(row.problem.items())))
            pools[problem][row.kernel].append(row.estimate_us)
    return sum(map(_problem_s, pools.values()))


def _problem_s(pools: dict[str, list[float]]) -> float:
    heats = [sorted(pool)[: heats_of(len(pool))] for pool in pools.values()]
    timed = [us for pool in heats for us in pool]
    heats_s = sum(CHECK_S + max(HEAT_S, HEAT_CALLS * us / 1e6) for us in timed)
    finalists = sorted(timed)[:FINALISTS]
    round_s = sum(max(ROUND_S, ROUND_CALLS * us / 1e6) for us in finalists)
    return heats_s + ROUNDS * round_s
