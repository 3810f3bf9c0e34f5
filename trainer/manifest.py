"""A JSON-lines manifest: one utterance a line, ``{"audio": "a/b.flac", "text": "…", "duration": 3.2, "speaker": "7"}``.

``duration`` (seconds) and ``speaker`` may be left out. ``audio`` is relative to the manifest's own folder, so that a
corpus can be moved together with its manifest. A byte order mark, CRLF line ends and blank lines change nothing.
"""

import difflib
import json
import os.path
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainer.errors import BadInputError
from trainer.utterances import Entry

SUFFIX = ".jsonl"
_TYPES = {"string_type": "must be text in quotes", "float_type": "must be a number of seconds"}


class _Line(BaseModel):
    """One line, as its author must write it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    audio: str
    text: str
    duration: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    speaker: str | None = None

    @field_validator("audio", "text", "speaker")
    @classmethod
    def _is_proper_text(cls, value: str | None) -> str | None:
        """Refuse what JSON can write but neither a file system nor a tokenizer takes."""
        if value is not None and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
            raise ValueError("holds a character that is none (\\u0000 or half of a surrogate pair); remove it")
        return value

    @field_validator("audio", "speaker")
    @classmethod
    def _is_not_empty(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty; give it or delete the line")
        return value


def read_manifest(file: Path) -> list[Entry]:
    """Return what the lines of a manifest say; no audio file is opened.

    Raises:
        BadInputError: The manifest cannot be read or is empty, a line is not as it must be, or two name one file.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise BadInputError(f"the manifest {file} cannot be read: {exc.strerror}; correct its permissions") from exc
    except UnicodeDecodeError as exc:
        line = exc.object[: exc.start].count(b"\n") + 1
        raise BadInputError(f"{file}:{line}: the line is not UTF-8; save the manifest as UTF-8") from exc
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    # Not splitlines(): it also splits at characters that may stand within a JSON string, such as U+2028.
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip(" \t\r"):
            continue
        source = f"{file}:{number}"
        entry = _to_entry(_parse(content, source), file.parent, source)
        other = seen.setdefault(str(entry.audio), source)
        if other != source:
            raise BadInputError(f"{source}: {entry.audio} is already named by {other}; delete one of the two lines")
        entries.append(entry)
    if not entries:
        raise BadInputError(
            f'the manifest {file} is empty; give one JSON object a line, such as {{"audio": "a.flac", "text": "hello"}}'
        )
    return entries


def _to_entry(line: _Line, folder: Path, source: str) -> Entry:
    audio = Path(os.path.normpath(folder / line.audio))
    return Entry(
        name=PurePath(os.path.normpath(line.audio)).as_posix(),
        audio=audio,
        text=line.text.strip(),
        speaker=line.speaker,
        source=source,
        duration_s=line.duration,
    )


def _parse(content: str, source: str) -> _Line:
    try:
        raw = json.loads(content, object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise BadInputError(f"{source}: not JSON: {exc.msg} (column {exc.colno}); correct the line") from exc
    except (ValueError, RecursionError) as exc:  # a key given twice, NaN, a number or a nesting beyond all measure
        raise BadInputError(f"{source}: not JSON that can be read ({exc}); correct the line") from exc
    if not isinstance(raw, dict):
        raise BadInputError(f'{source}: the line is no JSON object; write {{"audio": …, "text": …}}')
    try:
        return _Line.model_validate(raw)
    except ValidationError as exc:
        raise BadInputError(f"{source}: {_explain(exc)}") from exc


def _explain(error: ValidationError) -> str:
    """Return one sentence for the problem that says most."""
    # A misspelt key shows up twice, as unknown and as missing: the first says more.
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _Line.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_Line.model_fields)}; remove it"
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"the key {key} is missing; add it"
    if problem["type"] == "value_error":
        return f"{key} {problem['msg'].removeprefix('Value error, ')}"
    if problem["type"] in _TYPES:
        return f"{key} {_TYPES[problem['type']]} (given: {problem['input']!r}); correct it"
    return f"{key} must be above 0 and finite (given: {problem['input']!r}); correct or remove it"


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key written twice: JSON would keep the last one silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
