"""``best_params.json``: the winner of a study, with what is needed to trust and to reproduce it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import StorageError
from storage.files import read_json, write_json


class BadResultError(StorageError):
    """A results file is missing, damaged, or of another version."""


class Result(BaseModel):
    """Base of the parts of ``best_params.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WordErrorRate(Result):
    """A word error rate, with what it rests on."""

    wer: float
    words: int
    utterances: int
    interval: tuple[float, float]
    """95 % bootstrap interval."""


class Baseline(Result):
    """The baseline trial: the values of the study file's ``trial`` section."""

    trial: int
    parameters: dict[str, Any]
    dev: WordErrorRate | None
    test: WordErrorRate | None


class Teacher(Result):
    """The teacher on the same utterances."""

    dev: WordErrorRate
    test: WordErrorRate | None


class BestParams(Result):
    """The winner: parameters, the configuration they resolve to, its value with interval, and provenance."""

    schema_version: Literal[1] = 1
    study: str
    trial: int
    attempt: int
    metric: Literal["wer"] = "wer"
    value: float
    """The final word error rate on the development set, which the study minimised."""
    dev: WordErrorRate
    test: WordErrorRate | None
    """On the held-out set, by which nothing was chosen."""
    parameters: dict[str, Any]
    trial_spec: dict[str, Any]
    """The full configuration of the winning run."""
    study_seed: int
    trial_seed: int
    proposed_from: dict[str, list[int]]
    """Numbers of the trials, finished and running, that the sampler saw."""
    baseline: Baseline | None
    teacher: Teacher | None
    trials_finished: int
    budget: int
    packages: dict[str, str]
    code_version: str
    written_at: str
    """UTC, by the database's clock."""


def write_best(path: Path, best: BestParams) -> None:
    """Write ``best_params.json`` in one step; readers see the old winner or the new one.

    Raises:
        OSError: the disk is full or the folder read-only; an older file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, best.model_dump(mode="json"))


def read_best(path: Path) -> BestParams:
    """Read a ``best_params.json``.

    Raises:
        BadResultError: missing, damaged or of another version; names the file and the remedy.
    """
    try:
        return BestParams.model_validate(read_json(path))
    except FileNotFoundError:
        raise BadResultError(f"{path} does not exist; it is written when the first trial of a study finishes") from None
    except (ValidationError, ValueError, OSError) as exc:
        reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc)
        raise BadResultError(
            f"{path} is no valid best_params.json ({reason}); write it again with `distune best STUDY`"
        ) from exc
