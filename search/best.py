"""The winner of a study: found in the database, written to ``best_params.json`` whenever it changes."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from search.dispatch import OUTCOME, Outcome
from search.errors import NoResultError
from search.proposal import PROPOSAL
from search.study import OpenStudy, only_one, refresh
from storage.results import Baseline, BestParams, Teacher, WordErrorRate, write_best
from storage.runs import RunFolder
from trainer.events import Metrics, TrialResult

PACKAGES = ("torch", "transformers", "optuna", "sqlalchemy", "jiwer", "numpy", "soundfile", "tokenizers")


def update_best(study: OpenStudy) -> BestParams | None:
    """Write ``best_params.json`` as the database has it now; None while no trial is complete.

    One process at a time, and from what the database says at that moment: whoever writes last writes the truth.

    Raises:
        OSError: the folder cannot be written; an older file is then as it was.
    """
    with only_one(study.database, f"best of {study.study_id}"):
        try:
            best = find_best(study)
        except NoResultError:
            return None
        write_best(RunFolder(Path(study.spec.study.runs) / study.name).best_path, best)
        return best


def find_best(study: OpenStudy) -> BestParams:
    """Return the winner, against baseline and teacher.

    Raises:
        NoResultError: no trial is complete.
    """
    study = refresh(study)
    trials = study.optuna_study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    if not complete:
        raise NoResultError(f"study {study.name} has no complete trial yet; see `distune status {study.name}`")
    winner = min(complete, key=lambda trial: (trial.value, trial.number))
    outcome, result = _outcome(winner), _result(winner)
    assert winner.value is not None and result is not None and outcome.spec is not None
    proposal = winner.user_attrs[PROPOSAL]
    return BestParams(
        study=study.name,
        trial=winner.number,
        attempt=outcome.attempt,
        value=winner.value,
        dev=_word_error_rate(result.dev),
        test=_word_error_rate(result.test) if result.test else None,
        parameters=proposal["parameters"],
        trial_spec=outcome.spec,
        study_seed=study.spec.study.seed,
        trial_seed=study.spec.trial.seed,
        proposed_from={"finished": proposal["finished"], "running": proposal["running"]},
        baseline=_baseline(trials),
        teacher=_teacher(study),
        trials_finished=sum(trial.state.is_finished() for trial in trials),
        budget=study.budget,
        packages={name: _version(name) for name in PACKAGES},
        code_version=_version("distune"),
        written_at=_database_time(study),
    )


def _outcome(trial: FrozenTrial) -> Outcome:
    return Outcome.model_validate(trial.user_attrs[OUTCOME])


def _result(trial: FrozenTrial) -> TrialResult | None:
    if OUTCOME not in trial.user_attrs:
        return None
    result = _outcome(trial).result
    return None if result is None else TrialResult.model_validate(result)


def _word_error_rate(metrics: Metrics) -> WordErrorRate:
    return WordErrorRate(wer=metrics.wer, words=metrics.words, utterances=metrics.utterances, interval=metrics.interval)


def _baseline(trials: list[FrozenTrial]) -> Baseline | None:
    first = next((trial for trial in trials if trial.number == 0 and PROPOSAL in trial.user_attrs), None)
    if first is None:
        return None
    result = _result(first)
    return Baseline(
        trial=0,
        parameters=first.user_attrs[PROPOSAL]["parameters"],
        dev=_word_error_rate(result.dev) if result else None,
        test=_word_error_rate(result.test) if result and result.test else None,
    )


def _teacher(study: OpenStudy) -> Teacher | None:
    found = study.preflight
    if found is None:
        return None
    return Teacher(
        dev=_word_error_rate(found.teacher_dev),
        test=_word_error_rate(found.teacher_test) if found.teacher_test else None,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _database_time(study: OpenStudy) -> str:
    with study.database.engine.begin() as connection:
        now: Any = connection.execute(text("SELECT now()")).scalar_one()
    return str(now.isoformat(timespec="seconds"))
