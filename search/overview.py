"""A study at a glance: trials, workers, pace. What ``status`` prints, and what the live view draws."""

from collections import Counter
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, func, select

from search.config import Scalar
from search.dispatch import OUTCOME
from search.proposal import PROPOSAL
from search.study import OpenStudy, refresh
from storage.schema import PREFLIGHT, leases, workers

GONE_AFTER_S = 300
"""A worker that was not seen for this long is not shown any more."""


class Glance(BaseModel):
    """Base of the parts of an overview."""

    model_config = ConfigDict(frozen=True)


class TrialGlance(Glance):
    """One trial as it stands."""

    number: int
    state: str
    """WAITING, RUNNING, COMPLETE, PRUNED or FAIL; DIVERGED for a pruned trial whose loss was no number."""
    attempt: int
    worker: str | None
    """Who runs it now."""
    fraction: float
    """How much of the trial's budget it has seen."""
    wer: float | None
    """The final word error rate, or the last reported one."""
    parameters: dict[str, Scalar]
    seconds: float | None
    """Since it started, or from start to end; by the clocks of the machines that wrote them."""
    note: str | None
    """Why it failed, or what became of an attempt before this one."""
    log_tail: str | None


class WorkerGlance(Glance):
    """One worker, as it was last seen."""

    worker: str
    number: int | None
    seen_s_ago: float


class Overview(Glance):
    """A study as it stands."""

    name: str
    budget: int
    finished: int
    states: dict[str, int]
    best: TrialGlance | None
    trials: tuple[TrialGlance, ...]
    workers: tuple[WorkerGlance, ...]
    preflight: str
    """pending, running, done or refused."""
    refusal: str | None
    warnings: tuple[str, ...]
    dead_knobs: tuple[str, ...]
    """Searched fields that cannot change the student; ``warnings`` say why."""
    trials_per_hour: float | None
    seconds_left: float | None
    """Estimated from the trials finished so far."""

    @property
    def is_over(self) -> bool:
        """Whether every trial of the budget is finished."""
        return self.finished >= self.budget


def look_at(study: OpenStudy) -> Overview:
    """Read a study's overview from the database.

    Raises:
        StudyError: the study was deleted.
    """
    study = refresh(study)
    trials = study.optuna_study.get_trials(deepcopy=False)
    with study.database.engine.begin() as connection:
        rows = connection.execute(select(leases).where(leases.c.study_id == study.study_id))
        owners = {row.number: row for row in rows}
        present = _workers(connection, study.study_id)
    glances = tuple(_trial(study, trial, owners.get(trial.number)) for trial in trials)
    complete = [each for each in glances if each.state == "COMPLETE" and each.wer is not None]
    finished = sum(trial.state.is_finished() for trial in trials if trial.number < study.budget)
    per_hour = _pace(trials)
    return Overview(
        name=study.name,
        budget=study.budget,
        finished=finished,
        states=dict(Counter(each.state for each in glances)),
        best=min(complete, key=lambda each: (each.wer, each.number), default=None),
        trials=glances,
        workers=present,
        preflight=_preflight(study, owners.get(PREFLIGHT)),
        refusal=study.refusal,
        warnings=study.preflight.warnings if study.preflight else (),
        dead_knobs=study.preflight.dead_knobs if study.preflight else (),
        trials_per_hour=per_hour,
        seconds_left=(study.budget - finished) / per_hour * 3600 if per_hour else None,
    )


def _trial(study: OpenStudy, trial: FrozenTrial, lease: Any) -> TrialGlance:
    outcome = trial.user_attrs.get(OUTCOME, {})
    state = "DIVERGED" if outcome.get("kind") == "diverged" else trial.state.name
    is_running = trial.state == TrialState.RUNNING and lease is not None and lease.state == "held"
    reported = list(trial.intermediate_values.items())
    examples = max([lease.examples if lease else 0, *(step for step, _ in reported)])
    end = trial.datetime_complete or datetime.now()
    return TrialGlance(
        number=trial.number,
        state=state,
        attempt=lease.attempt if lease else 0,
        worker=lease.worker if is_running else None,
        fraction=1.0 if trial.state == TrialState.COMPLETE else min(1.0, examples / study.spec.trial.optim.examples),
        wer=trial.value if trial.state == TrialState.COMPLETE else max(reported)[1] if reported else None,
        parameters=trial.user_attrs.get(PROPOSAL, {}).get("parameters") or trial.system_attrs.get("fixed_params", {}),
        seconds=(end - trial.datetime_start).total_seconds() if trial.datetime_start else None,
        note=outcome.get("reason") or (lease.note if lease else None),
        log_tail=outcome.get("log_tail"),
    )


def _workers(connection: Connection, study_id: int) -> tuple[WorkerGlance, ...]:
    age = func.extract("epoch", func.now() - workers.c.seen_at).label("age")
    query = select(workers.c.worker, workers.c.number, age).where(workers.c.study_id == study_id, age < GONE_AFTER_S)
    return tuple(
        WorkerGlance(worker=row.worker, number=row.number, seen_s_ago=float(row.age))
        for row in connection.execute(query.order_by(workers.c.worker))
    )


def _preflight(study: OpenStudy, lease: Any) -> str:
    if study.refusal is not None:
        return "refused"
    if study.preflight is not None:
        return "done"
    return "running" if lease is not None and lease.state == "held" else "pending"


def _pace(trials: list[FrozenTrial]) -> float | None:
    """Return trials finished per hour since the first one started."""
    starts = [trial.datetime_start for trial in trials if trial.datetime_start and trial.state.is_finished()]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    if not starts or not ends:
        return None
    hours = (max(ends) - min(starts)).total_seconds() / 3600
    return len(ends) / hours if hours > 0 else None
