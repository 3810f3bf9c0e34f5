"""What a worker has in hand for one study: its name there, its training process, its patience with the database."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from search.child import TrainingChild
from search.dispatch import Sightings
from search.errors import LeaseLostError
from search.keeper import LeaseKeeper
from search.study import OpenStudy
from storage import leases
from storage.database import is_connection_error, retrying
from storage.leases import Lease
from storage.runs import RunFolder

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

RELEASE_PATIENCE_S = 5.0
"""How long to try to give a lease back; after that it runs out by itself."""


@dataclass(kw_only=True)
class Contact:
    """One worker's work on one study."""

    study: OpenStudy
    worker: str
    sightings: Sightings
    child: TrainingChild
    stop: threading.Event

    @property
    def folder(self) -> RunFolder:
        """The study's run folder, as this machine sees it."""
        return RunFolder(Path(self.study.spec.study.runs) / self.study.name)

    def keep(self, lease: Lease) -> LeaseKeeper:
        """Return the keeper of a lease, to be used in a ``with`` block."""
        return LeaseKeeper(self.study, lease, self.worker, self.sightings)

    def patiently(self, function: Callable[..., Answer], *args: object) -> Answer:
        """Call ``function``, again and again while the database is away, until asked to stop.

        Raises:
            The database's own errors, when it was away for longer than the study's ``database_timeout_s``.
        """
        database = self.study.database
        limit_s = self.study.spec.study.database_timeout_s
        return retrying(timeout_s=limit_s, stop=self.stop, before_retry=database.revive)(function, *args)

    def next_attempt(self, lease: Lease, keeper: LeaseKeeper, note: str) -> Lease:
        """Begin the next attempt on our own lease, after the training process died.

        Raises:
            LeaseLostError: it is not ours any more.
        """
        ttl_s = self.study.spec.study.lease_ttl_s
        begin = partial(leases.next_attempt, self.study.database.engine, lease, note=note, ttl_s=ttl_s)
        following = self.patiently(begin)
        if following is None:
            raise LeaseLostError(lease.number, lease.attempt)
        keeper.switch(following)
        return following

    def release(self, lease: Lease, keeper: LeaseKeeper, examples: int) -> None:
        """Give a lease back, so that another worker goes on at once."""
        give_back = partial(
            leases.release,
            self.study.database.engine,
            lease,
            note=f"released by worker {self.worker} after {examples} examples",
            examples=examples,
            checkpoint=keeper.checkpoint,
        )
        try:
            retrying(timeout_s=RELEASE_PATIENCE_S)(give_back)
        except Exception as exc:
            if not is_connection_error(exc) or not self.stop.is_set():
                raise
            log.warning("the database is away; the lease of trial %d runs out by itself", lease.number)
