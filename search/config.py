"""The configuration of a study: ``StudySpec``, loaded from YAML with errors that name the key and its line."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from search.errors import ConfigError
from trainer.config import TrialSpec
from trainer.spec import Count, Positive, Spec

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

Scalar = bool | int | float | str | None


class NamedOptions(Spec):
    """A sampler or pruner of Optuna by its short name, with Optuna's own options beside it."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, raw: object) -> object:
        """``tpe``, or ``{name: tpe, n_startup_trials: 5}``: what is not ``name`` is an option."""
        if isinstance(raw, str):
            return {"name": raw}
        if isinstance(raw, Mapping) and "name" in raw and "options" not in raw:
            return {"name": raw["name"], "options": {key: raw[key] for key in raw if key != "name"}}
        return raw


class SamplerSpec(NamedOptions):
    """Which sampler proposes parameters. CMA-ES is not offered: it unpickles from the database."""

    name: Literal["tpe", "random", "qmc", "grid"] = "tpe"


class PrunerSpec(NamedOptions):
    """Which pruner ends hopeless trials. Wilcoxon is not offered: its steps are test items, ours are examples seen."""

    name: Literal["median", "percentile", "hyperband", "successive_halving", "patient", "threshold", "none"] = "median"


class ParameterSpec(Spec):
    """The range of one searched field: ``{low, high, log, step}`` or ``{choices}``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: Positive | None = None
    choices: tuple[Scalar, ...] | None = None

    @model_validator(mode="after")
    def _is_a_range_or_choices(self) -> Self:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise ValueError("give either choices, or low and high; not both")
            if not self.choices:
                raise ValueError("choices is empty; list at least one value")
            if len(set(map(repr, self.choices))) != len(self.choices):
                raise ValueError("choices lists a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}); swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a log scale")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self


class StudySection(Spec):
    """What the study is called, how many trials it gets, and how they are chosen, ended and kept alive."""

    name: str
    trials: Count = 50
    """The budget: the study ends with exactly this many trials, the baseline among them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec(options={"n_startup_trials": 5, "warmup_fraction": 0.1})
    strict: bool = False
    """Refuse a study that searches a field which cannot change the student, in place of a warning."""
    storage: str | None = None
    """A PostgreSQL URL without password; the embedded server when absent."""
    runs: str = "runs"
    """Folder of the run folders; relative to the study file."""
    lease_ttl_s: Positive = 20.0
    """A worker that has not renewed its lease for this long has lost its trial."""
    max_attempts: Count = 3
    """Consecutive attempts without a new checkpoint after which a trial FAILs."""
    stall_timeout_s: Positive = 600.0
    """A training process that says nothing for this long is replaced."""
    trial_timeout_s: Positive | None = None
    """A trial whose attempt takes longer FAILs; no limit when absent."""
    database_timeout_s: Positive = 3600.0
    """A worker cut off from the database for this long checkpoints and exits."""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        return check_name(name)

    @field_validator("storage")
    @classmethod
    def _storage_holds_no_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            has_password = make_url(url).password is not None
        except ArgumentError:
            raise ValueError("is not a database URL; write postgresql://user@host:5432/database") from None
        if has_password:
            raise ValueError(
                "holds a password, and the study file is kept in the run folder and the database; "
                "take it out and set PGPASSWORD or PGPASSFILE"
            )
        return url


class StudySpec(Spec):
    """Everything that determines a study: the study itself, its search space, and the trial it varies."""

    study: StudySection
    space: dict[str, ParameterSpec]
    trial: TrialSpec

    @field_validator("space")
    @classmethod
    def _space_is_not_empty(cls, space: dict[str, ParameterSpec]) -> dict[str, ParameterSpec]:
        if not space:
            raise ValueError("is empty; name at least one field of the trial to search, e.g. lr")
        return space

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML; loading it gives an equal ``StudySpec``."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, allow_unicode=True)


def check_name(name: str) -> str:
    """Return ``name`` if it can name a study and its folder.

    Raises:
        ValueError: it could not; the message says what a name is made of.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} cannot name a study; use 1 to 100 of A-Z a-z 0-9 . _ - and start with a letter or digit"
        )
    return name


def with_strict(spec: StudySpec) -> StudySpec:
    """Return the same study, refused if it searches a field which cannot change the student."""
    return spec.model_copy(update={"study": spec.study.model_copy(update={"strict": True})})


def with_name(spec: StudySpec, name: str) -> StudySpec:
    """Return the same study under another name.

    Raises:
        ConfigError: it cannot name a study.
    """
    try:
        return spec.model_copy(update={"study": spec.study.model_copy(update={"name": check_name(name)})})
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
