"""What a report is made from, each part of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ferrum_numba.results import CheckRow, Planned, ResultFile, Row
from ferrum_numba.results.row import problem_key
from ferrum_numba.results.targets import Target

Key = tuple[tuple[str, Any], ...]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a report was asked for: kernels by name, problems by `problem_key`; all where empty."""

    kernels: frozenset[str] = frozenset()
    problems: frozenset[Key] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.kernels or self.problems)

    def concerns(self, row: Row) -> bool:
        """Return whether a row is of what was asked for."""
        wanted = not self.problems or problem_key(row.problem) in self.problems
        return wanted and (not self.kernels or row.kernel in self.kernels)


@dataclass(frozen=True)
class Sources:
    """Everything a report can be made from; each part may be missing.

    files:    results of `tune`
    ceilings: results of the ceiling kernels
    plan:     candidates as `tune.plan` returns them; modelled
    checks:   of kernels against their reference
    peers:    tables of others' times: {"gpu", "date", "source", "regime", "rows": [{"op",
              "problem", "peer", "kind": "4-bit" or "fp16", "us"}]}; a row is beside every result
              whose problem has the peer's values in the fields that the peer's problem names
    gpu:      facts of the GPU that the plan is for
    asked:    what comes first
    defaults: a kernel's default config, by (kernel, problem_key), for the landscape
    compare:  (name, file) of older results to compare with
    coming:   Ops that are about to be measured
    targets:  (name, what must be reached)
    """

    files: Sequence[ResultFile] = ()
    ceilings: Sequence[ResultFile] = ()
    plan: Sequence[Planned] = ()
    checks: Sequence[CheckRow] = ()
    peers: Sequence[Facts] = ()
    gpu: Facts | None = None
    asked: Asked = Asked()
    defaults: Mapping[tuple[str, Key], Facts] = field(default_factory=dict)
    compare: tuple[str, ResultFile] | None = None
    coming: frozenset[str] = frozenset()
    targets: tuple[str, Sequence[Target]] | None = None
