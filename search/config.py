"""The configuration of a study: ``StudySpec``, loaded from YAML with errors that name the key and its line."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from search.errors import ConfigError
from trainer.config import Count, Positive, Spec, TrialSpec

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

Scalar = bool | int | float | str | None


class _Loader(yaml.SafeLoader):
    """YAML as people write it: PyYAML reads ``1e-3`` as a string, for want of a point and a sign (YAML 1.1)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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


def load_study_spec(path: Path) -> StudySpec:
    """Read a study file and resolve it: paths made absolute, ``trial.seed`` taken from the study.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not fit; names key, line and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the study file {path}: {reason}; give the path of a YAML file") from exc
    return parse_study_spec(text, source=str(path), base=path.resolve().parent)


def parse_study_spec(text: str, *, source: str, base: Path) -> StudySpec:
    """Parse the text of a study file; relative paths are relative to ``base``.

    Raises:
        ConfigError: as ``load_study_spec``.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        raise ConfigError(f"{where}: not YAML: {getattr(exc, 'problem', None) or exc}") from exc
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        if root is not None:
            _collect_lines(root, (), lines, source)
    except RecursionError:
        raise ConfigError(f"{source}: an alias refers to itself; write the values out") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a study file is a mapping with the keys study, space and trial")
    study, trial = raw.get("study"), raw.get("trial")
    if isinstance(study, dict) and isinstance(trial, dict):
        trial.setdefault("seed", study.get("seed", 0))
    try:
        spec = StudySpec.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, source, lines)) from exc
    return _with_absolute_paths(spec, base)


def with_name(spec: StudySpec, name: str) -> StudySpec:
    """Return the same study under another name.

    Raises:
        ConfigError: it cannot name a study.
    """
    try:
        return spec.model_copy(update={"study": spec.study.model_copy(update={"name": check_name(name)})})
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def _collect_lines(
    node: yaml.Node, at: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], source: str
) -> None:
    """Record the line of every key, and refuse a key written twice: YAML would keep the last one silently."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*at, str(key.value))
            if name in lines:
                raise ConfigError(f"{source}:{key.start_mark.line + 1}: {_dotted(name)} is given twice; keep one")
            lines[name] = key.start_mark.line + 1
            _collect_lines(value, name, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*at, index), lines, source)


def _dotted(location: tuple[str | int, ...]) -> str:
    return ".".join(map(str, location))


def _explain(error: ValidationError, source: str, lines: Mapping[tuple[str | int, ...], int]) -> str:
    """Return one sentence for the problem that says most."""
    # A misspelt key shows up twice, as unknown and as missing: the first says more.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = problem["loc"]
    known = location
    while known and known not in lines:
        known = known[:-1]
    where = f"{source}:{lines.get(known, 1)}: {_dotted(location) or 'the file'}"
    if problem["type"] == "extra_forbidden":
        names = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, Scalar) and problem["type"] != "value_error" else ""
    return f"{where}: {message}{shown}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that are known at ``location`` of a study file."""
    model: Any = StudySpec
    for part in location:
        if model is StudySpec and part == "space":
            return list(ParameterSpec.model_fields)
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def _with_absolute_paths(spec: StudySpec, base: Path) -> StudySpec:
    """Resolve relative paths against ``base``; a model name that is no directory there stays a hub name."""
    data, student, teacher = spec.trial.data, spec.trial.student, spec.trial.teacher
    trial = spec.trial.model_copy(
        update={
            "data": data.model_copy(
                update={
                    "train": _absolute(data.train, base),
                    "dev": _absolute(data.dev, base),
                    "test": None if data.test is None else _absolute(data.test, base),
                }
            ),
            "teacher": teacher.model_copy(update={"model": resolve_model(teacher.model, base)}),
            "student": student.model_copy(
                update={"model": None if student.model is None else resolve_model(student.model, base)}
            ),
        }
    )
    study = spec.study.model_copy(update={"runs": _absolute(spec.study.runs, base)})
    return spec.model_copy(update={"study": study, "trial": trial})


def _absolute(path: str, base: Path) -> str:
    return str((base / Path(path).expanduser()).resolve())


def resolve_model(name: str, base: Path) -> str:
    """Return a model's absolute directory, or ``name`` where it reads as a hub name.

    ``owner/model`` is both a relative path and a hub name: the directory wins where it exists.
    """
    path = base / Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return str(path.resolve()) if looks_like_path or path.is_dir() else name
