"""Leases on trials: who owns which, for how long. Rows and statements only; what to do about them is the caller's.

Every change is one short transaction and names the attempt it belongs to, so that a worker which lost its lease
changes nothing (a fencing token, checked where the write is made).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Text, and_, case, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from storage.schema import leases, optuna_trials, workers


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One attempt's claim on one trial, as it was when read."""

    study_id: int
    number: int
    trial_id: int | None
    """Optuna's id of the trial; None for the preflight."""
    attempt: int
    fruitless: int
    """Consecutive attempts before this one that ended without a new checkpoint."""
    outcome: dict[str, Any] | None
    """What the trial ended with, where its owner died before Optuna was told."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expired:
    """A lease that another worker may take over: run out, or given back."""

    number: int
    attempt: int
    is_released: bool


def _lease(row: Row[Any]) -> Lease:
    fields = row._mapping
    return Lease(**{name: fields[name] for name in Lease.__dataclass_fields__})


_COLUMNS = [leases.c[name] for name in Lease.__dataclass_fields__]

# statement_timestamp(), not now(): a transaction that waited for a lock must not write a time long past.
_clock = func.statement_timestamp()


def _ttl(seconds: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _owned(lease: Lease) -> Any:
    return and_(
        leases.c.study_id == lease.study_id,
        leases.c.number == lease.number,
        leases.c.attempt == lease.attempt,
        leases.c.state == "held",
    )


def acquire(
    engine: Engine, *, study_id: int, number: int, trial_id: int | None, worker: str, ttl_s: float
) -> Lease | None:
    """Take the first lease on a trial, or return None if it has one already: somebody adopted it."""
    statement = (
        insert(leases)
        .values(
            study_id=study_id,
            number=number,
            trial_id=trial_id,
            attempt=1,
            worker=worker,
            state="held",
            acquired_at=_clock,
            expires_at=_clock + _ttl(ttl_s),
        )
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    )
    with engine.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else _lease(row)


def take_over(engine: Engine, expired: Expired, *, study_id: int, worker: str, ttl_s: float) -> Lease | None:
    """Take the lease that was seen ``expired``, as the next attempt; None if it changed hands since.

    An attempt that was given back, or that left a new checkpoint, does not count as fruitless.
    """
    made_progress = leases.c.checkpoint > leases.c.checkpoint_at_start
    statement = (
        update(leases)
        .where(
            leases.c.study_id == study_id,
            leases.c.number == expired.number,
            leases.c.attempt == expired.attempt,
            or_(leases.c.state == "released", and_(leases.c.state == "held", leases.c.expires_at < _clock)),
        )
        .values(
            attempt=leases.c.attempt + 1,
            fruitless=case(
                (leases.c.state == "released", leases.c.fruitless),
                (made_progress, 0),
                else_=leases.c.fruitless + 1,
            ),
            note=case(
                (leases.c.state == "released", leases.c.note),
                else_=func.concat("worker ", leases.c.worker, " was lost in attempt ", leases.c.attempt),
            ),
            worker=worker,
            state="held",
            acquired_at=_clock,
            expires_at=_clock + _ttl(ttl_s),
            checkpoint_at_start=leases.c.checkpoint,
        )
        .returning(*_COLUMNS)
    )
    with engine.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else _lease(row)


def next_attempt(engine: Engine, lease: Lease, *, note: str, ttl_s: float) -> Lease | None:
    """Go on as a new attempt of the same worker, after its training process died; None if the lease was lost."""
    made_progress = leases.c.checkpoint > leases.c.checkpoint_at_start
    statement = (
        update(leases)
        .where(_owned(lease))
        .values(
            attempt=leases.c.attempt + 1,
            fruitless=case((made_progress, 0), else_=leases.c.fruitless + 1),
            note=note,
            acquired_at=_clock,
            expires_at=_clock + _ttl(ttl_s),
            checkpoint_at_start=leases.c.checkpoint,
        )
        .returning(*_COLUMNS)
    )
    with engine.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else _lease(row)


def renew(engine: Engine, lease: Lease, *, ttl_s: float, examples: int, checkpoint: int) -> bool:
    """Extend the lease and note how far its trial is; False if it is no longer ours."""
    statement = (
        update(leases)
        .where(_owned(lease))
        .values(
            expires_at=_clock + _ttl(ttl_s),
            examples=func.greatest(leases.c.examples, examples),
            checkpoint=func.greatest(leases.c.checkpoint, checkpoint),
        )
    )
    with engine.begin() as connection:
        return connection.execute(statement).rowcount == 1


def expired(engine: Engine, study_id: int) -> Sequence[Expired]:
    """Return the leases of a study that ran out or were given back, lowest number first."""
    statement = (
        select(leases.c.number, leases.c.attempt, leases.c.state)
        .where(
            leases.c.study_id == study_id,
            or_(leases.c.state == "released", and_(leases.c.state == "held", leases.c.expires_at < _clock)),
        )
        .order_by(leases.c.number)
    )
    with engine.begin() as connection:
        rows = connection.execute(statement).all()
    return [Expired(number=row.number, attempt=row.attempt, is_released=row.state == "released") for row in rows]


def state_of(engine: Engine, study_id: int, number: int) -> str | None:
    """Return held, released or finished; None where there is no lease."""
    statement = select(leases.c.state).where(leases.c.study_id == study_id, leases.c.number == number)
    with engine.begin() as connection:
        return connection.execute(statement).scalar_one_or_none()


def without_lease(engine: Engine, study_id: int) -> Sequence[tuple[int, int]]:
    """Return (number, trial id) of RUNNING trials that have no lease: their owner died between two writes."""
    statement = (
        select(optuna_trials.c.number, optuna_trials.c.trial_id)
        .outerjoin(
            leases, and_(leases.c.study_id == optuna_trials.c.study_id, leases.c.number == optuna_trials.c.number)
        )
        .where(
            optuna_trials.c.study_id == study_id,
            # Optuna's column is an enumerated type; as text it can be compared with one.
            cast(optuna_trials.c.state, Text) == "RUNNING",  # an enumerated type there
            leases.c.attempt.is_(None),
        )
        .order_by(optuna_trials.c.number)
    )
    with engine.begin() as connection:
        return [(row.number, row.trial_id) for row in connection.execute(statement)]


def record_outcome(engine: Engine, lease: Lease, outcome: dict[str, Any]) -> bool:
    """Write down what the trial ended with, before Optuna is told; False if the lease was lost."""
    with engine.begin() as connection:
        return connection.execute(update(leases).where(_owned(lease)).values(outcome=outcome)).rowcount == 1


def finish(engine: Engine, lease: Lease) -> bool:
    """Close the lease of a trial that Optuna was told about; False if it was lost meanwhile. May be repeated."""
    statement = (
        update(leases)
        .where(
            leases.c.study_id == lease.study_id,
            leases.c.number == lease.number,
            leases.c.attempt == lease.attempt,
            leases.c.state.in_(["held", "finished"]),
        )
        .values(state="finished")
    )
    with engine.begin() as connection:
        return connection.execute(statement).rowcount == 1


def release(engine: Engine, lease: Lease, *, note: str, examples: int, checkpoint: int) -> bool:
    """Give the trial back, so that another worker may go on at once; False if the lease was lost."""
    statement = (
        update(leases)
        .where(_owned(lease))
        .values(
            state="released",
            note=note,
            expires_at=_clock,
            examples=func.greatest(leases.c.examples, examples),
            checkpoint=func.greatest(leases.c.checkpoint, checkpoint),
        )
    )
    with engine.begin() as connection:
        return connection.execute(statement).rowcount == 1


def hold_for_write(connection: Connection, lease: Lease) -> bool:
    """Lock the lease row inside the caller's transaction; False if the lease is no longer ours.

    ``FOR SHARE``: a takeover waits until the write that we guard is committed, and every later write sees it.
    """
    statement = select(leases.c.attempt).where(_owned(lease)).with_for_update(read=True)
    return connection.execute(statement).one_or_none() is not None


def see_worker(engine: Engine, worker: str, *, study_id: int, number: int | None) -> None:
    """Note that a worker is alive and what it is doing; shown by ``status``, decides nothing."""
    values = {"study_id": study_id, "number": number}
    statement = insert(workers).values(worker=worker, **values)
    statement = statement.on_conflict_do_update(index_elements=["worker"], set_={**values, "seen_at": _clock})
    with engine.begin() as connection:
        connection.execute(statement)


def forget_worker(engine: Engine, worker: str) -> None:
    """Take a worker that ends off the list."""
    with engine.begin() as connection:
        connection.execute(workers.delete().where(workers.c.worker == worker))
