"""Plan and search: which configs there are, what they compile to, and how fast each is."""

from ferrum_numba.tune.model import bound_by, bound_us
from ferrum_numba.tune.notebook import NotebookBar
from ferrum_numba.tune.plan import plan
from ferrum_numba.tune.search import SearchTask, tune
from ferrum_numba.tune.space import feasible
from ferrum_numba.tune.worker import Candidate, Measurer, Outcome, Worker

__all__ = [
    "Candidate",
    "Measurer",
    "NotebookBar",
    "Outcome",
    "SearchTask",
    "Worker",
    "bound_by",
    "bound_us",
    "feasible",
    "plan",
    "tune",
]
