"""Pruners of Optuna by short name. A report's step is examples seen; warm-ups are given in evaluations."""

import inspect
from collections.abc import Callable
from typing import Any

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)

from search.config import PrunerSpec, StudySpec
from search.errors import ConfigError
from search.samplers import check_options, construct

_BUILDERS: dict[str, Callable[..., BasePruner]] = {
    "median": MedianPruner,
    "percentile": PercentilePruner,
    "hyperband": HyperbandPruner,
    "successive_halving": SuccessiveHalvingPruner,
    "threshold": ThresholdPruner,
    "none": NopPruner,
}
# Optuna counts these in steps. Ours are examples seen, so nobody should have to write them.
_IN_STEPS = {"n_warmup_steps", "interval_steps", "min_resource", "max_resource"}


def build_pruner(spec: StudySpec) -> BasePruner:
    """Return the study's pruner.

    Raises:
        ConfigError: an option is unknown, or refused by Optuna.
    """
    return _build(spec.study.pruner, spec.trial.evaluation_marks)


def _build(pruner: PrunerSpec, marks: tuple[int, ...]) -> BasePruner:
    options = dict(pruner.options)
    if pruner.name == "patient":
        return _patient(options, marks)
    builder = _BUILDERS[pruner.name]
    own = [] if builder is NopPruner else list(inspect.signature(builder).parameters)
    known = [name for name in own if name not in _IN_STEPS]
    if "n_warmup_steps" in own:
        known += ["n_warmup_evaluations", "warmup_fraction"]
    check_options("pruner", pruner.name, known, options)
    if "n_warmup_steps" in own:
        options["n_warmup_steps"] = _warmup_steps(options, marks)
    if "min_resource" in own:
        options["min_resource"] = marks[0]
    if "max_resource" in own:
        options["max_resource"] = marks[-1]
    return construct("pruner", pruner.name, lambda: builder(**options))


def _patient(options: dict[str, Any], marks: tuple[int, ...]) -> BasePruner:
    known = ["wrapped", "patience", "min_delta"]
    check_options("pruner", "patient", known, options)
    wrapped = options.pop("wrapped", "median")
    if "patience" not in options:
        raise ConfigError("study.pruner.patience: is missing; say for how many evaluations to wait")
    inner = construct("pruner", "patient", lambda: PrunerSpec.model_validate(wrapped))
    if inner.name == "patient":
        raise ConfigError("study.pruner.wrapped: patient cannot wrap itself; name another pruner")
    return construct("pruner", "patient", lambda: PatientPruner(_build(inner, marks), **options))


def _warmup_steps(options: dict[str, Any], marks: tuple[int, ...]) -> int:
    """Return the step from which trials are judged: one past the last evaluation of the warm-up."""
    evaluations = options.pop("n_warmup_evaluations", None)
    fraction = options.pop("warmup_fraction", None)
    if evaluations is not None and fraction is not None:
        raise ConfigError("study.pruner: give n_warmup_evaluations or warmup_fraction, not both")
    if fraction is not None:
        if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise ConfigError(f"study.pruner.warmup_fraction: {fraction!r} is not between 0 and 1")
        return round(fraction * marks[-1])
    if evaluations is None or evaluations == 0:
        return 0
    if not isinstance(evaluations, int) or not 0 <= evaluations <= len(marks):
        raise ConfigError(
            f"study.pruner.n_warmup_evaluations: {evaluations!r} is not a whole number from 0 to {len(marks)}, "
            "the number of evaluations of a trial"
        )
    return marks[evaluations - 1] + 1
