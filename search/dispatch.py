"""Who runs which trial: claim, finish, release. Short transactions that keep the budget exact and lose no trial.

A trial of Optuna in the state RUNNING or WAITING is the queue; our lease says who owns it. Every write to a trial is
fenced by the lease (``guard.fenced``), every new trial by the budget (``guard.within_budget``).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from search import guard
from search.config import Scalar
from search.errors import BudgetSpentError, ConfigError, LeaseLostError
from search.proposal import propose_once
from search.space import trial_spec
from search.study import OpenStudy
from storage import leases
from storage.leases import Expired, Lease
from storage.schema import PREFLIGHT
from trainer.config import TrialSpec

log = logging.getLogger(__name__)

OUTCOME = "distune:outcome"
"""Key of the trial attribute that holds what it ended with."""


class Outcome(BaseModel):
    """What a trial ended with: what Optuna is told, and what is kept beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    value: float | None = None
    """The final word error rate of a COMPLETE trial."""
    kind: Literal["finished", "pruned", "diverged", "failed"]
    reason: str | None = None
    log_tail: str | None = None
    result: dict[str, Any] | None = None
    """The ``TrialResult`` of a COMPLETE trial."""
    spec: dict[str, Any] | None = None
    """The resolved ``TrialSpec`` it ran with."""
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that is ours to run."""

    lease: Lease
    trial_id: int
    spec: TrialSpec
    parameters: dict[str, Scalar]
    last_step: int
    """The largest step already reported: evaluations up to it are neither reported nor judged again."""


@dataclass(frozen=True, kw_only=True)
class PreflightClaim:
    """The study's preflight is ours to run, before any trial."""

    lease: Lease


class Wait:
    """Nothing to do now, but others are still running, and they may die."""


class Spent:
    """Every trial of the budget is finished."""


@dataclass(kw_only=True)
class Sightings:
    """Which leases this process has seen expired, and since when, without a break in contact.

    After an outage of the database every lease has expired, and whoever is back first would rob the living. So an
    expired lease is taken only after it was seen expired for half a ttl. Times are this process's monotonic clock.
    """

    ttl_s: float
    clock: Callable[[], float] = time.monotonic
    _since: dict[Expired, float] = field(default_factory=dict)
    _last: float = 0.0

    def observe(self, expired: Sequence[Expired]) -> list[Expired]:
        """Note what is expired now; return what may be taken over. A released lease may be at once."""
        now = self.clock()
        if now - self._last > self.ttl_s / 2:
            self._since.clear()  # we were not looking (outage, frozen): what we remember proves nothing
        self._last = now
        self._since = {each: self._since.get(each, now) for each in expired}
        return [each for each, since in self._since.items() if each.is_released or now - since >= self.ttl_s / 2]

    def forget(self) -> None:
        """Contact with the database was broken: start again."""
        self._since.clear()


def claim(study: OpenStudy, worker: str, sightings: Sightings) -> Claim | PreflightClaim | Wait | Spent:
    """Take the first of: an orphaned trial, a waiting one, a new one while the budget lasts.

    Raises:
        StudyError: the study was deleted.
        Database errors of SQLAlchemy and Optuna: nothing was claimed, or an orphan is left that will be adopted.
    """
    takeable = sightings.observe(leases.expired(study.database.engine, study.study_id))
    if leases.state_of(study.database.engine, study.study_id, PREFLIGHT) != "finished":
        lease = _claim_preflight(study, worker, takeable)
        return Wait() if lease is None else PreflightClaim(lease=lease)
    lease = _adopt(study, worker, takeable) or _start_waiting(study, worker) or _create(study, worker)
    if lease is None:
        is_over = all(trial.state.is_finished() for trial in _within_budget(study))
        return Spent() if is_over else Wait()
    if lease.outcome is not None:
        _tell(study, lease, Outcome.model_validate(lease.outcome))
    elif lease.fruitless >= study.spec.study.max_attempts:
        give_up(study, lease, lease.note or "its worker was lost", log_tail=None)
    else:
        try:
            return _prepare(study, lease)
        except ConfigError as exc:
            finish(study, lease, Outcome(state="FAIL", kind="failed", reason=str(exc), attempt=lease.attempt))
    return claim(study, worker, sightings)


def finish(study: OpenStudy, lease: Lease, outcome: Outcome) -> None:
    """Record the outcome on the lease, then tell Optuna. If we die in between, the next owner completes the telling.

    Raises:
        LeaseLostError: the trial belongs to another attempt; nothing was written.
    """
    if not leases.record_outcome(study.database.engine, lease, outcome.model_dump(mode="json")):
        raise LeaseLostError(lease.number, lease.attempt)
    _tell(study, lease, outcome)


def give_up(study: OpenStudy, lease: Lease, reason: str, log_tail: str | None) -> None:
    """FAIL a trial that made no progress in ``max_attempts`` attempts, its reason kept."""
    reason = f"no new checkpoint in {lease.fruitless} attempts: {reason}"
    outcome = Outcome(state="FAIL", kind="failed", reason=reason, log_tail=log_tail, attempt=lease.attempt)
    finish(study, lease, outcome)


def report(study: OpenStudy, claim: Claim, step: int, wer: float) -> bool:
    """Record an intermediate word error rate and ask the pruner; True if the trial should end here.

    Raises:
        LeaseLostError: the trial belongs to another attempt; nothing was written.
    """
    try:
        with guard.fenced(claim.lease):
            trial = study.trial(claim.trial_id)
            trial.report(wer, step)
            # The baseline is what every result is read against: it always runs to its end.
            return claim.lease.number != 0 and trial.should_prune()
    except UpdateFinishedTrialError as exc:  # told by somebody else, in the dashboard for example
        raise LeaseLostError(claim.lease.number, claim.lease.attempt) from exc


def worst_reported(study: OpenStudy) -> float:
    """Return the largest word error rate that any trial of the study reported, or 1.0 if that is larger."""
    trials = study.optuna_study.get_trials(deepcopy=False)
    return max([1.0, *(value for trial in trials for value in trial.intermediate_values.values())])


def _within_budget(study: OpenStudy) -> list[FrozenTrial]:
    return [trial for trial in study.optuna_study.get_trials(deepcopy=False) if trial.number < study.budget]


def _claim_preflight(study: OpenStudy, worker: str, takeable: Sequence[Expired]) -> Lease | None:
    """Take the study's preflight, once for all workers; None while another worker is at it."""
    lease = _acquire(study, PREFLIGHT, None, worker)
    for expired in takeable:
        if lease is None and expired.number == PREFLIGHT:
            lease = _take_over(study, expired, worker)
    return lease


def _take_over(study: OpenStudy, expired: Expired, worker: str) -> Lease | None:
    return leases.take_over(
        study.database.engine,
        expired,
        study_id=study.study_id,
        worker=worker,
        ttl_s=study.spec.study.lease_ttl_s,
    )


def _acquire(study: OpenStudy, number: int, trial_id: int | None, worker: str) -> Lease | None:
    return leases.acquire(
        study.database.engine,
        study_id=study.study_id,
        number=number,
        trial_id=trial_id,
        worker=worker,
        ttl_s=study.spec.study.lease_ttl_s,
    )


def _adopt(study: OpenStudy, worker: str, takeable: Sequence[Expired]) -> Lease | None:
    """Take a trial whose owner is gone: its lease expired or was released, or it never got one."""
    for expired in takeable:
        if expired.number != PREFLIGHT:
            lease = _take_over(study, expired, worker)
            if lease is not None:
                log.info("trial %d attempt %d: taken over", lease.number, lease.attempt)
                return lease
    for number, trial_id in leases.without_lease(study.database.engine, study.study_id):
        lease = _acquire(study, number, trial_id, worker)
        if lease is not None:
            log.info("trial %d: adopted without a lease", number)
            return lease
    return None


def _start_waiting(study: OpenStudy, worker: str) -> Lease | None:
    """Start the first waiting trial that the budget covers: the baseline, or one that a user enqueued."""
    for trial in _within_budget(study):
        if trial.state == TrialState.WAITING and study.storage.set_trial_state_values(
            trial._trial_id, TrialState.RUNNING
        ):
            lease = _acquire(study, trial.number, trial._trial_id, worker)
            if lease is not None:
                return lease
    return None


def _create(study: OpenStudy, worker: str) -> Lease | None:
    try:
        with guard.within_budget(study.study_id):
            trial_id = study.storage.create_new_trial(study.study_id)
    except BudgetSpentError:
        return None
    number = study.storage.get_trial(trial_id).number
    # None: somebody saw the trial without a lease and adopted it. It is in good hands; claim again.
    return _acquire(study, number, trial_id, worker) or _create(study, worker)


def _prepare(study: OpenStudy, lease: Lease) -> Claim:
    """Make sure that the trial has its parameters, and return it.

    Raises:
        ConfigError: a user enqueued it with parameters that cannot be.
    """
    assert lease.trial_id is not None
    with guard.fenced(lease):
        proposed = propose_once(study, lease.trial_id)
    return Claim(
        lease=lease,
        trial_id=lease.trial_id,
        spec=trial_spec(study.spec, proposed.parameters),
        parameters=proposed.parameters,
        last_step=proposed.last_step,
    )


def _tell(study: OpenStudy, lease: Lease, outcome: Outcome) -> None:
    """Tell Optuna what the lease records, and close the lease. May be repeated."""
    assert lease.trial_id is not None
    state = TrialState[outcome.state]
    values = None if outcome.value is None else [outcome.value]
    try:
        with guard.fenced(lease):
            study.storage.set_trial_user_attr(lease.trial_id, OUTCOME, outcome.model_dump(mode="json"))
            study.storage.set_trial_state_values(lease.trial_id, state, values)
    except UpdateFinishedTrialError:
        log.info("trial %d attempt %d: Optuna had been told already", lease.number, lease.attempt)
    if not leases.finish(study.database.engine, lease):
        raise LeaseLostError(lease.number, lease.attempt)
