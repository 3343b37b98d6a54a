"""How long the GPU will be held for what was planned: a rule of thumb, for a plan to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ferrum_numba.results import Planned
from ferrum_numba.tune.heats import HOPELESS
from ferrum_numba.tune.searchers import FIRST, STEP, settled

# of a heat: to load, check and capture it, s; what it replays, s at least and in calls
CHECK_S, HEAT_S, HEAT_CALLS = 0.012, 0.05, 100
# of a final: so many meet on average, in so many rounds, each for so long at least and in calls
FINALISTS, ROUNDS, ROUND_S, ROUND_CALLS = 4, 40, 0.006, 24


def expected_s(rows: Iterable[Planned], searcher: str = "auto") -> float:
    """Return the seconds that the GPU is expected to be held for a plan's candidates."""
    fields: dict[object, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.estimate_us is not None:
            problem = (row.op, tuple(sorted(row.problem.items())))
            fields[problem][row.kernel].append(row.estimate_us)
    return sum(_problem_s(pools, searcher) for pools in fields.values())


def heat_s(us: float) -> float:
    """Return how long the heat of a candidate that takes so long is expected to take."""
    return CHECK_S + max(HEAT_S, HEAT_CALLS * us / 1e6)


def _problem_s(pools: Mapping[str, list[float]], searcher: str) -> float:
    best_us = min(map(min, pools.values()))
    heats = [
        us
        for pool in pools.values()
        for us in sorted(pool)[: _heats(len(pool), min(pool) / best_us, searcher)]
    ]
    round_s = sum(max(ROUND_S, ROUND_CALLS * us / 1e6) for us in sorted(heats)[:FINALISTS])
    return sum(map(heat_s, heats)) + ROUNDS * round_s


def _heats(num_configs: int, behind: float, searcher: str) -> int:
    """Return how many configs of a kernel are measured that is so far behind the best."""
    if settled(searcher, num_configs) == "exhaustive":
        return num_configs
    return min([few for factor, few in HOPELESS if behind > factor] or [FIRST + STEP])
