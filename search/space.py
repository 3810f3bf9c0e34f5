"""The search space: which fields of the trial configuration vary, and how parameters and ``TrialSpec`` translate.

A key of the space is the last part, or parts, of a field's dotted name: ``lr`` is ``optim.lr``. Where several fields
end alike, the one nearest to the root is meant; the full dotted name always works.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ValidationError

from search.config import ParameterSpec, Scalar, StudySpec
from search.errors import ConfigError
from trainer.config import TrialSpec

# Where a trial runs and what it is measured on is no hyperparameter: trials would not be comparable.
FIXED_PARTS = ("data", "teacher", "evaluation", "runtime", "seed", "optim.examples")

Parameters = Mapping[str, Scalar]


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every searched parameter, checked against the trial configuration.

    Raises:
        ConfigError: a key names no field, or a bound or choice is not a value of its field.
    """
    result: dict[str, BaseDistribution] = {}
    fields: dict[str, str] = {}
    for key, parameter in spec.space.items():
        path = field_path(spec.trial, key)
        if path in fields:
            raise ConfigError(f"space.{key} and space.{fields[path]} both mean {path}; keep one")
        fields[path] = key
        result[key] = _distribution(spec.trial, key, path, parameter)
    return result


def baseline(spec: StudySpec) -> dict[str, Scalar]:
    """Return the baseline's parameters: the values that the ``trial`` section itself gives.

    Raises:
        ConfigError: such a value lies outside its range in the space.
    """
    values = recorded_parameters(spec, spec.trial)
    for key, distribution in distributions(spec).items():
        value = values[key]
        if not contains(distribution, value):
            path = field_path(spec.trial, key)
            raise ConfigError(
                f"trial.{path} is {value!r}, outside space.{key}; the trial section is the baseline, "
                "so widen the range or change the value"
            )
    return values


def trial_spec(spec: StudySpec, parameters: Parameters) -> TrialSpec:
    """Return the trial configuration with ``parameters`` in place.

    Raises:
        ConfigError: a parameter is not one of the space, or not a value of its field.
    """
    for key in parameters:
        if key not in spec.space:
            raise ConfigError(f"{key} is not in the space of study {spec.study.name}: {', '.join(spec.space)}")
    changed = spec.trial.model_dump()
    for key, value in parameters.items():
        _set(changed, field_path(spec.trial, key), value)
    return _validated(changed, ", ".join(parameters))


def recorded_parameters(spec: StudySpec, trial: TrialSpec) -> dict[str, Scalar]:
    """Return the parameters under which ``trial_spec`` gives ``trial``: its inverse."""
    return {key: _get(trial, field_path(spec.trial, key)) for key in spec.space}


def searched_values(spec: StudySpec, path: str) -> tuple[Scalar, ...]:
    """Return the values that a field takes in a study: its choices, the bounds of its range, or its one value."""
    for key, parameter in spec.space.items():
        if field_path(spec.trial, key) == path:
            return parameter.choices or (parameter.low, parameter.high)
    return (_get(spec.trial, path),)


def field_path(trial: TrialSpec, key: str) -> str:
    """Return the dotted name of the field that ``key`` means.

    Raises:
        ConfigError: it means none, or several equally near to the root, or one that must not vary.
    """
    paths = list(_leaves(trial, ""))
    if _is_fixed(key) and key in paths:
        raise ConfigError(f"space.{key}: this must be the same for every trial, or they could not be compared")
    open_paths = [path for path in paths if not _is_fixed(path)]
    matches = [path for path in open_paths if path == key or path.endswith("." + key)]
    if not matches:
        # An optional section that is not given is a leaf, and nothing in it can be searched.
        absent = [path for path in open_paths if path.rsplit(".", 1)[-1] in key.split(".")[:-1]]
        if absent:
            section = absent[0]
            raise ConfigError(f"space.{key}: the trial section gives no {section}; add trial.{section} to search in it")
        names = [*open_paths, *(path.rsplit(".", 1)[-1] for path in open_paths)]
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "use a dotted name such as optim.lr"
        raise ConfigError(f"space.{key}: no field that a trial can vary has this name; {hint}")
    depth = min(path.count(".") for path in matches)
    nearest = [path for path in matches if path.count(".") == depth]
    if len(nearest) > 1:
        raise ConfigError(f"space.{key} could mean {' or '.join(nearest)}; write the full name")
    return nearest[0]


def _is_fixed(path: str) -> bool:
    return any(path == part or path.startswith(part + ".") for part in FIXED_PARTS)


def _distribution(trial: TrialSpec, key: str, path: str, parameter: ParameterSpec) -> BaseDistribution:
    if parameter.choices is not None:
        for choice in parameter.choices:
            _check_value(trial, key, path, choice)
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    current = _get(trial, path)
    whole = _is_int_field(trial, path)
    if not whole and (isinstance(current, (bool, str))):
        raise ConfigError(f"space.{key}: {path} is not a number (it is {current!r}); give choices")
    bounds = (parameter.low, parameter.high, parameter.step or 1)
    if whole and any(not float(bound).is_integer() for bound in bounds):
        raise ConfigError(f"space.{key}: {path} is a whole number; give whole low, high and step")
    for bound in (parameter.low, parameter.high):
        _check_value(trial, key, path, int(bound) if whole else bound)
    if whole:
        return IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1)
        )
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _check_value(trial: TrialSpec, key: str, path: str, value: Scalar) -> None:
    changed = trial.model_dump()
    _set(changed, path, value)
    _validated(changed, f"space.{key}")


def _validated(raw: dict[str, Any], where: str) -> TrialSpec:
    try:
        return TrialSpec.model_validate(raw)
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ")
        given = f"{problem['input']!r} cannot be {name}: " if isinstance(problem["input"], Scalar) else ""
        raise ConfigError(f"{where}: {given}{reason}") from exc


def contains(distribution: BaseDistribution, value: Scalar) -> bool:
    """Whether ``value`` is one that ``distribution`` could propose."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _leaves(model: BaseModel, prefix: str) -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _get(model: BaseModel, path: str) -> Any:
    return reduce(getattr, path.split("."), model)


def _set(raw: dict[str, Any], path: str, value: Scalar) -> None:
    *parents, last = path.split(".")
    reduce(lambda part, name: part[name], parents, raw)[last] = value


def _is_int_field(trial: TrialSpec, path: str) -> bool:
    """Whether the field holds whole numbers: then 2.5 is not a value, and Optuna must not propose it."""
    changed = trial.model_dump()
    _set(changed, path, 2.5)
    try:
        TrialSpec.model_validate(changed)
    except ValidationError as exc:
        return any(problem["type"] == "int_from_float" for problem in exc.errors())
    return False
