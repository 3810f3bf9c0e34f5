"""Samplers and pruners: options, seeds, and proposals as pure functions of what was seen."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.trial import FrozenTrial, create_trial

from search.errors import ConfigError
from search.pruners import build_pruner
from search.samplers import check_sampler, propose
from search.space import distributions
from tests.studies import make_study_spec

optuna.logging.set_verbosity(optuna.logging.WARNING)


def seen_trials(space: dict[str, BaseDistribution], count: int) -> list[FrozenTrial]:
    trials = []
    for number in range(count):
        params = {"kl_weight": 0.01 * (number + 1), "lr": 1e-4 * (number + 1), "batch_size": 8}
        trial = create_trial(params=params, distributions=space, value=1.0 / (number + 1))
        trial.number = number
        trials.append(trial)
    return trials


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_proposal_depends_on_seed_number_and_what_was_seen_only(sampler: str) -> None:
    spec = make_study_spec(sampler={"name": sampler})
    seen = seen_trials(distributions(spec), 12)
    first = propose(spec, 12, seen, {})
    optuna.samplers.RandomSampler().reseed_rng()
    assert propose(spec, 12, list(reversed(seen)), {}) == first
    assert propose(spec, 13, seen, {}) != first
    assert set(first) == set(spec.space)


def test_tpe_learns_from_what_it_saw() -> None:
    spec = make_study_spec()
    space = distributions(spec)
    assert propose(spec, 12, seen_trials(space, 12), {}) != propose(spec, 12, seen_trials(space, 11), {})


def test_another_study_seed_gives_other_proposals() -> None:
    assert propose(make_study_spec(seed=1), 3, [], {}) != propose(make_study_spec(seed=2), 3, [], {})


def test_fixed_parameters_are_kept_and_the_rest_is_proposed() -> None:
    spec = make_study_spec()
    assert propose(spec, 3, [], {"lr": 0.005})["lr"] == 0.005
    with pytest.raises(ConfigError, match=r"the enqueued value 7 of lr is not in the space"):
        propose(spec, 3, [], {"lr": 7})


def test_a_grid_needs_values_that_can_be_listed_and_is_no_smaller_than_the_budget() -> None:
    with pytest.raises(ConfigError, match=r"space.kl_weight: the grid sampler needs choices, or low, high and step"):
        check_sampler(make_study_spec(sampler={"name": "grid"}))
    space = {"batch_size": {"choices": [4, 8]}}
    check_sampler(make_study_spec(trials=3, sampler={"name": "grid"}, space=space))
    with pytest.raises(ConfigError, match="the grid has 2 points and the baseline makes 3"):
        check_sampler(make_study_spec(trials=4, sampler={"name": "grid"}, space=space))


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"name": "tpe", "n_startup": 3}, "study.sampler.n_startup: tpe has no such option here; it has: .*n_startup_"),
        ({"name": "tpe", "seed": 3}, "study.sampler.seed: tpe has no such option here"),
        ({"name": "qmc", "qmc_type": "magic"}, "study.sampler: qmc refuses its options: .*magic"),
        ({"name": "grid", "x": 1}, "study.sampler.x: grid has no such option here; it has: none"),
    ],
)
def test_a_wrong_sampler_option_is_refused(sampler: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_sampler(make_study_spec(sampler=sampler, space={"batch_size": {"choices": [4, 8]}}))


@pytest.mark.parametrize(
    ("pruner", "kind"),
    [
        ("median", MedianPruner),
        ({"name": "percentile", "percentile": 25.0}, PercentilePruner),
        ("hyperband", HyperbandPruner),
        ("successive_halving", SuccessiveHalvingPruner),
        ({"name": "threshold", "upper": 2.0}, ThresholdPruner),
        ({"name": "patient", "patience": 2, "wrapped": {"name": "median", "n_startup_trials": 3}}, PatientPruner),
        ("none", NopPruner),
    ],
)
def test_pruners_are_built_by_name(pruner: Any, kind: type) -> None:
    assert isinstance(build_pruner(make_study_spec(pruner=pruner)), kind)


@pytest.mark.parametrize(
    ("option", "steps"),
    [({"n_warmup_evaluations": 2}, 201), ({"n_warmup_evaluations": 0}, 0), ({"warmup_fraction": 0.25}, 100), ({}, 0)],
)
def test_a_warm_up_in_evaluations_becomes_examples_seen(option: dict[str, Any], steps: int) -> None:
    pruner = build_pruner(make_study_spec(pruner={"name": "median", **option}))
    assert isinstance(pruner, MedianPruner)
    assert pruner._n_warmup_steps == steps  # 400 examples, evaluated at 100, 200, 300 and 400


@pytest.mark.parametrize(
    ("pruner", "sentence"),
    [
        ({"name": "median", "n_warmup_steps": 100}, "study.pruner.n_warmup_steps: .*it has: .*n_warmup_evaluations"),
        ({"name": "median", "n_warmup_evaluations": 5}, "5 is not a whole number from 0 to 4"),
        ({"name": "median", "warmup_fraction": 3}, "3 is not between 0 and 1"),
        ({"name": "median", "warmup_fraction": 0.5, "n_warmup_evaluations": 1}, "not both"),
        ({"name": "patient"}, "study.pruner.patience: is missing"),
        ({"name": "percentile"}, "study.pruner: percentile refuses its options"),
    ],
)
def test_a_wrong_pruner_option_is_refused(pruner: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_pruner(make_study_spec(pruner=pruner))
