"""Plan, search, decide: which config of which kernel for which problem."""

from ferrum_numba.tune.dispatch import Choice, Winner, choose, stored_config, winners
from ferrum_numba.tune.model import bound_by, bound_us
from ferrum_numba.tune.plan import plan
from ferrum_numba.tune.search import Task, tune
from ferrum_numba.tune.space import feasible
from ferrum_numba.tune.worker import Candidate, Measurer, Outcome, Worker

__all__ = [
    "Candidate",
    "Choice",
    "Measurer",
    "Outcome",
    "Task",
    "Winner",
    "Worker",
    "bound_by",
    "bound_us",
    "choose",
    "feasible",
    "plan",
    "stored_config",
    "tune",
    "winners",
]
