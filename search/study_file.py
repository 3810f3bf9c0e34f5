"""Study files: YAML into ``StudySpec``, with errors that name the key, its line and the remedy."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from search.config import ParameterSpec, Scalar, StudySpec
from search.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML as people write it: PyYAML reads ``1e-3`` as a string, for want of a point and a sign (YAML 1.1)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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
        # An optional part, such as student.lora, is annotated as a union.
        model = next((each for each in get_args(field.annotation) if each is not type(None)), field.annotation)
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
