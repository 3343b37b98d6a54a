"""A search that is killed at random times: `python killed_tuner.py FOLDER ROUNDS SEED`.

Every round forks a process that searches on, with a measurer that writes down what it measured, and
kills it after a while. Prints a line of JSON: how many processes were killed, how many rows were
lost (measured, the next one begun, and not in the store), and how many were measured twice.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from toy_kernel import Config, Problem, Toy, make_binary

from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.results.store import Store
from ferrum_numba.tune import SearchTask
from ferrum_numba.tune.search import search
from ferrum_numba.tune.worker import Outcome

CONFIGS = 60
MEASURE_S = 0.002


class Many(Toy):
    space = tuple(Config(speed) for speed in range(1, CONFIGS + 1))


class Noting:
    """Measures in no time; begins each by noting the one before, which must be kept by then."""

    def __init__(self, notes):
        self.notes, self.last = notes, None

    def run(self, candidate, best_us):
        if self.last is not None:
            os.write(self.notes, f"{json.dumps(self.last)}\n".encode())
        time.sleep(MEASURE_S)
        self.last = [candidate.problem.M, candidate.config.speed]
        return Outcome("measured", us=(100.0,) * 3, rotated=True)

    def round(self, candidates, turn, samples):
        return None


def searched(folder, problem):
    """Search one problem, whose rows go where all others' go."""
    kernel = Many()
    task = SearchTask((kernel,), (problem,), KNOWN["h200"], Policy(), folder / "toy.json")
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    binaries = {(kernel.name, config): make_binary() for config in kernel.space}
    search(task, Noting(notes), binaries=binaries)


def killed(folder, rounds, rng):
    """Return how many of the processes were killed; the others had measured everything."""
    count, m = 0, 1
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            searched(folder, Problem(m))
            os._exit(0)
        time.sleep(rng.uniform(0.01, 1.4 * CONFIGS * MEASURE_S + 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            count += 1
        else:
            m += 1
    searched(folder, Problem(m))
    return count


def main(folder, rounds, seed):
    """Kill and count."""
    count = killed(folder, rounds, random.Random(seed))
    with Store(folder / "tuning.sqlite") as store:
        kept = {(row.problem["M"], row.config["speed"]) for row in store.rows("toy")}
    noted = [tuple(json.loads(line)) for line in (folder / "notes").read_text().splitlines()]
    twice = sum(times > 1 for times in Counter(noted).values())
    found = {"killed": count, "noted": len(noted), "lost": len(set(noted) - kept), "twice": twice}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
