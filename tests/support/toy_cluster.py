"""A board and a measurer for the workers of a cluster that have none: importable there."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.tune.dask_worker import Host
from ferrum_numba.tune.worker import Outcome


def board():
    """Return a board of the worker's own."""
    gpu = replace(KNOWN["h200"], uuid=f"board-{os.getpid()}")
    return Host(gpu, "580.1", "13.0", {"clock_mhz": 1980.0}, others=0)


def no_board():
    raise DeviceError("no GPU to run on: there is none")


def old_board():
    return replace(board(), version="0.0.1")


def other_board():
    return replace(board(), gpu=KNOWN["a100"])


class Measures:
    """Answers after a while; some candidates end the worker, once or whenever they are tried."""

    def __init__(self, folder, delay_s=0.02, kills=(), always=False):
        self.folder, self.delay_s = Path(folder), delay_s
        self.kills, self.always = kills, always

    def open(self, kernel, problem, *_):
        pass

    def run(self, candidate, best_us):
        about = (candidate.problem.M, candidate.config.speed)
        with (self.folder / "asked").open("a") as notes:
            notes.write(f"{os.getppid()} {about[0]} {about[1]}\n")
        killed = self.folder / f"killed-{about[0]}-{about[1]}"
        if about in self.kills and (self.always or not killed.exists()):
            killed.touch()
            # the worker of the cluster, which this process is a child of
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        time.sleep(self.delay_s)
        return Outcome("measured", us=(100.0 / candidate.config.speed,) * 5, rotated=True)

    def round(self, candidates, turn, samples):
        return None
