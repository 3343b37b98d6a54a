"""In which order the configs of a kernel are measured on a problem, and when it is enough.

A searcher is asked for configs and told their times. It knows nothing of GPUs or files, so that
recorded landscapes try it as well as a board does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ferrum_numba.contract import Config
from ferrum_numba.errors import ConfigError

NAMES = ("auto", "exhaustive", "model", "optuna")
# a space of no more configs is measured whole, unless another searcher is asked for
SMALL = 32
# what the model picks before anything was measured
FIRST = 8
# neighbours of the best that are measured before they are looked at
STEP = 4
# measurements that Optuna may ask for
TRIALS = 24


class Searcher(Protocol):
    """Chooses what to measure next."""

    def ask(self) -> list[Config]:
        """Return what to measure next, the likeliest first; nothing: it is done."""
        ...

    def tell(self, config: Config, us: float | None) -> None:
        """Hear a config's time, asked for or not; None: it failed, or was dropped as slow."""
        ...


class Exhaustive:
    """Measures all there is, in its order."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self._left = list(configs)

    def ask(self) -> list[Config]:
        """Return all that nobody told of."""
        return list(self._left)

    def tell(self, config: Config, us: float | None) -> None:
        """Take a config from what is left."""
        if config in self._left:
            self._left.remove(config)


class ModelFirst:
    """Measures the model's first picks, then neighbours of the best until none of them is better.

    Neighbours differ in one field; where the space has none of these, in the fewest.
    """

    def __init__(self, configs: Sequence[Config], first: int = FIRST) -> None:
        """Set what may be asked for.

        Args:
            configs: the likeliest to win first
            first:   so many of them are measured before the best is known
        """
        self._fields: dict[Config, dict[str, Any]] = {c: asdict(c) for c in configs}
        self._first = list(configs[:first])
        self._us: dict[Config, float | None] = {}
        # the best when its neighbours were last asked for
        self._asked: tuple[Config, list[Config]] | None = None

    def ask(self) -> list[Config]:
        """Return the first picks, then a few neighbours of the best at a time."""
        waiting = [config for config in self._first if config not in self._us]
        if waiting:
            return waiting
        timed = {config: us for config, us in self._us.items() if us is not None}
        if not timed:
            # none of what the model likes runs: anything may be the best
            return [config for config in self._fields if config not in self._us][:STEP]
        best = min(timed, key=lambda config: timed[config])
        return self._neighbours(best)[:STEP]

    def tell(self, config: Config, us: float | None) -> None:
        """Note a time."""
        self._us[config] = us

    def _neighbours(self, best: Config) -> list[Config]:
        """Return what was not measured of the configs that differ least, the likeliest first."""
        mine = asdict(best)

        def unlike(config: Config) -> int:
            return sum(mine[name] != value for name, value in self._fields[config].items())

        others = [config for config in self._fields if config != best]
        nearest = min(map(unlike, others), default=0)
        return [c for c in others if unlike(c) == max(1, nearest) and c not in self._us]


class OptunaSearcher:
    """Lets Optuna's sampler propose fields; what it proposes is rounded to the nearest config."""

    def __init__(self, configs: Sequence[Config], trials: int = TRIALS, seed: int = 0) -> None:
        """Begin a study in memory; it is told of the same times in the same order again.

        Raises:
            ConfigError: Optuna is not installed.
        """
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the searcher optuna needs Optuna, which is not installed; "
                "pip install 'ferrum-numba[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._fields: dict[Config, dict[str, Any]] = {c: asdict(c) for c in configs}
        self._axes = {
            name: optuna.distributions.CategoricalDistribution(values)
            for name, values in _axes(self._fields.values()).items()
        }
        self._open: dict[Config, Any] = {}
        self._told: set[Config] = set()
        self._left = min(trials, len(configs))

    def ask(self) -> list[Config]:
        """Return one config that was not measured."""
        free = [config for config in self._fields if config not in self._told]
        if self._open:
            return list(self._open)
        if not free or self._left == 0:
            return []
        self._left -= 1
        trial = self._study.ask(self._axes)
        config = min(free, key=lambda c: _unlike(self._fields[c], trial.params))
        self._open[config] = trial
        return [config]

    def tell(self, config: Config, us: float | None) -> None:
        """Pass a time on."""
        self._told.add(config)
        trial = self._open.pop(config, None)
        if trial is not None and us is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        elif trial is not None:
            self._study.tell(trial, us)
        elif us is not None and config in self._fields:
            fields = self._fields[config]
            params = {name: fields[name] for name in self._axes}
            known = self._optuna.trial.create_trial(
                params=params, distributions=self._axes, value=us
            )
            self._study.add_trial(known)


def _axes(configs: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the fields that differ, with their values in the order of their first."""
    values: dict[str, dict[Hashable, None]] = {}
    for fields in configs:
        for name, value in fields.items():
            values.setdefault(name, {})[value] = None
    return {name: list(found) for name, found in values.items() if len(found) > 1}


def _unlike(fields: dict[str, Any], wanted: dict[str, Any]) -> int:
    return sum(fields[name] != value for name, value in wanted.items())


def settled(name: str, num_configs: int) -> str:
    """Return what `auto` means for so many configs, and any other name as it is."""
    if name != "auto":
        return name
    return "exhaustive" if num_configs <= SMALL else "model"


def make_searcher(name: str, configs: Sequence[Config]) -> Searcher:
    """Return a searcher by its name, one of NAMES.

    Args:
        configs: that can run, the likeliest to win first

    Raises:
        ConfigError: no such searcher, or it is not installed.
    """
    name = settled(name, len(configs))
    if name == "exhaustive":
        return Exhaustive(configs)
    if name == "model":
        return ModelFirst(configs)
    if name == "optuna":
        return OptunaSearcher(configs)
    raise ConfigError(f"a searcher is one of {', '.join(NAMES)}; got {name!r}")
