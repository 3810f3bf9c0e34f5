"""Guards that run inside Optuna's own transactions, so that a check and the write it allows cannot be torn apart.

Optuna writes through its own engine. A lock held on another connection would not protect such a write: a process
frozen between the check and the write wakes up and writes all the same. A ``begin`` hook on Optuna's engine runs the
check as the first statement of the very transaction that writes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from optuna.storages import RDBStorage
from sqlalchemy import Connection, event, func, select

from search.errors import BudgetSpentError, LeaseLostError
from storage import leases
from storage.leases import Lease
from storage.schema import optuna_studies, optuna_trials, studies

Guard = Callable[[Connection], None]

_guard: ContextVar[Guard | None] = ContextVar("guard", default=None)


def install(storage: RDBStorage) -> None:
    """Make every transaction of ``storage`` begin with the guard that is in force, if one is."""
    event.listen(storage.engine, "begin", _run_guard)


def _run_guard(connection: Connection) -> None:
    guard = _guard.get()
    if guard is not None:
        guard(connection)


@contextmanager
def _in_force(guard: Guard) -> Iterator[None]:
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


@contextmanager
def within_budget(study_id: int) -> Iterator[None]:
    """Refuse every transaction in which the study already has as many trials as its budget.

    The study's row is locked first, so that two creations cannot both count before either has inserted.

    Raises:
        BudgetSpentError: from inside the block.
    """

    def check(connection: Connection) -> None:
        budget = connection.execute(
            select(studies.c.budget).where(studies.c.study_id == study_id).with_for_update()
        ).scalar_one()
        count = connection.execute(
            select(func.count()).select_from(optuna_trials).where(optuna_trials.c.study_id == study_id)
        ).scalar_one()
        if count >= budget:
            raise BudgetSpentError(f"the budget of {budget} trials is spent")

    with _in_force(check):
        yield


@contextmanager
def no_trials_yet(study_id: int) -> Iterator[None]:
    """Let the first trial of a study be created once: a repeated attempt finds it there and is refused.

    A refusal is no error: it means that the earlier attempt was committed, and only its reply was lost.
    """

    def check(connection: Connection) -> None:
        connection.execute(select(optuna_studies).where(optuna_studies.c.study_id == study_id).with_for_update())
        count = connection.execute(
            select(func.count()).select_from(optuna_trials).where(optuna_trials.c.study_id == study_id)
        ).scalar_one()
        if count:
            raise BudgetSpentError("the study has its baseline")

    with _in_force(check), suppress(BudgetSpentError):
        yield


@contextmanager
def fenced(lease: Lease) -> Iterator[None]:
    """Refuse every transaction after the lease was lost.

    Raises:
        LeaseLostError: from inside the block.
    """

    def check(connection: Connection) -> None:
        if not leases.hold_for_write(connection, lease):
            raise LeaseLostError(lease.number, lease.attempt)

    with _in_force(check):
        yield
