"""Samplers: which parameters a trial gets, as a pure function of the study's seed, its number and what it saw.

A proposal is computed in an in-memory study that holds exactly the trials seen, so that it can be replayed: the real
study is only told the outcome.
"""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config import Scalar, StudySpec
from search.errors import ConfigError
from search.space import baseline, contains, distributions

_OURS = {"seed", "search_space"}

Built = TypeVar("Built")


def check_sampler(spec: StudySpec) -> None:
    """Build the sampler once, so that a wrong option is refused before anything starts.

    Raises:
        ConfigError: an option is unknown or refused, or the grid is smaller than the budget.
    """
    _build(spec, seed=0)
    if spec.study.sampler.name == "grid":
        points = len(grid(spec)._all_grids)
        if spec.study.trials > points + 1:
            raise ConfigError(
                f"study.trials is {spec.study.trials}, but the grid has {points} points and the baseline makes "
                f"{points + 1}; lower study.trials or refine the space"
            )


def propose(
    spec: StudySpec, number: int, seen: Sequence[FrozenTrial], fixed: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Return the parameters of trial ``number``, which saw the trials ``seen``.

    Args:
        spec: The study.
        number: The trial's number; its seed derives from it and the study's.
        seen: Finished and running trials, in any order; running ones with their parameters.
        fixed: Parameters that were chosen already (the baseline, or a trial that a user enqueued).

    Raises:
        ConfigError: ``fixed`` names a parameter, or has a value, that is not in the space.
    """
    space = distributions(spec)
    check_fixed(fixed, space)
    name = spec.study.sampler.name
    if name == "tpe":
        study = _study(_build(spec, seed=trial_seed(spec, number)), sorted(seen, key=lambda trial: trial.number))
    elif name == "random":
        study = _study(_build(spec, seed=trial_seed(spec, number)), [])
    elif name == "grid":
        # Optuna gives trial k of a study point k. The baseline, trial 0, takes no point: the last trial takes its.
        sampler = grid(spec)
        study = _study(sampler, [_unseen()] * (number % len(sampler._all_grids)))
        fixed = {**baseline(spec), **fixed} if fixed else {}  # a grid point is whole or not at all
    else:
        # QMC needs the space of one finished trial, and counts its proposals: ask for those before ours.
        study = _study(_build(spec, seed=spec.study.seed), [_finished(baseline(spec), space)])
        for _ in range(1, number):
            study.ask(space)
    if fixed:
        study.enqueue_trial(dict(fixed))
    proposal = study.ask(space)
    return {key: proposal.params[key] for key in space}


def check_fixed(fixed: Mapping[str, Scalar], space: Mapping[str, BaseDistribution]) -> None:
    """Refuse an enqueued trial whose parameters do not fit the space.

    Raises:
        ConfigError: names the parameter.
    """
    for key, value in fixed.items():
        if key not in space or not contains(space[key], value):
            raise ConfigError(f"the enqueued value {value!r} of {key} is not in the space; enqueue another trial")


def trial_seed(spec: StudySpec, number: int) -> int:
    """Return the seed of trial ``number``'s sampler: 31 bits of a hash, so that neighbours share nothing."""
    return int.from_bytes(hashlib.sha256(f"{spec.study.seed}/{number}".encode()).digest()[:4], "big") >> 1


def grid(spec: StudySpec) -> GridSampler:
    """Return the grid sampler over every value of the space.

    Raises:
        ConfigError: a range has no step, so that its values cannot be listed.
    """
    return GridSampler({key: _values(key, each) for key, each in distributions(spec).items()}, seed=spec.study.seed)


def _values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    if distribution.log or distribution.step is None:
        raise ConfigError(f"space.{key}: the grid sampler needs choices, or low, high and step without log")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + index * distribution.step for index in range(count)]


def _build(spec: StudySpec, seed: int) -> BaseSampler:
    options = spec.study.sampler.options
    if spec.study.sampler.name == "grid":
        check_options("sampler", "grid", {}, options)
        return grid(spec)
    builders: dict[str, Callable[..., BaseSampler]] = {"tpe": TPESampler, "random": RandomSampler, "qmc": QMCSampler}
    builder = builders[spec.study.sampler.name]
    check_options("sampler", spec.study.sampler.name, inspect.signature(builder).parameters, options, ours=_OURS)
    return construct("sampler", spec.study.sampler.name, lambda: builder(**options, seed=seed))


def check_options(
    kind: str, name: str, known: Iterable[str], options: Mapping[str, object], ours: Iterable[str] = ()
) -> None:
    """Refuse an option that the sampler or pruner does not have, or that distune sets itself.

    Raises:
        ConfigError: names the option and those that are known.
    """
    open_names = [each for each in known if each not in set(ours)]
    for option in options:
        if option not in open_names:
            listed = ", ".join(open_names) or "none"
            raise ConfigError(f"study.{kind}.{option}: {name} has no such option here; it has: {listed}")


def construct(kind: str, name: str, build: Callable[[], Built]) -> Built:
    """Call ``build``, turning Optuna's complaints about a value into a ``ConfigError``."""
    with warnings.catch_warnings():
        # The study file asked for it; Optuna's word that an option may change belongs in its own documentation.
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return build()
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"study.{kind}: {name} refuses its options: {exc}") from exc


def _study(sampler: BaseSampler, trials: Iterable[FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="minimize")
    study.add_trials(trials)
    return study


def _unseen() -> FrozenTrial:
    return create_trial(state=TrialState.FAIL)


def _finished(parameters: Mapping[str, Scalar], space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    return create_trial(params=dict(parameters), distributions=dict(space), value=0.0)
