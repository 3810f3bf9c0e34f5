"""Keeps a lease alive from a thread of its own, whatever the worker's main thread is doing."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from search.dispatch import Sightings
from search.study import OpenStudy
from storage import leases
from storage.leases import Lease

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews a lease every ``ttl/4`` while the ``with`` block runs, and watches the contact with the database."""

    def __init__(self, study: OpenStudy, lease: Lease, worker: str, sightings: Sightings) -> None:
        self._study = study
        self._lease = lease
        self._worker = worker
        self._sightings = sightings
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="lease keeper", daemon=True)
        self._contact = time.monotonic()
        self.is_lost = False
        """Another attempt owns the trial: nothing may be written any more."""
        self.is_in_contact = True
        """The last renewal reached the database."""
        self.examples = 0
        self.checkpoint = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over = True
        self._wake.set()
        self._thread.join()

    @property
    def silence_s(self) -> float:
        """Seconds since the database was last reached."""
        return 0.0 if self.is_in_contact else time.monotonic() - self._contact

    def switch(self, lease: Lease) -> None:
        """Go on with the next attempt's lease on the same trial."""
        self._lease = lease

    def checkpointed(self, examples: int) -> None:
        """Note a new checkpoint, and write it down now: it is what an attempt is judged by."""
        self.checkpoint = self.examples = examples
        self._wake.set()

    def _run(self) -> None:
        ttl_s = self._study.spec.study.lease_ttl_s
        while not self._is_over:
            self._renew(ttl_s)
            self._wake.wait(ttl_s / 4)
            self._wake.clear()

    def _renew(self, ttl_s: float) -> None:
        engine = self._study.database.engine
        lease = self._lease
        try:
            is_ours = leases.renew(engine, lease, ttl_s=ttl_s, examples=self.examples, checkpoint=self.checkpoint)
            self._sightings.observe(leases.expired(engine, self._study.study_id))
            leases.see_worker(engine, self._worker, study_id=self._study.study_id, number=lease.number)
        except Exception as exc:
            # Whatever it was, this thread must live: without it a healthy trial is taken from us. Training goes on
            # without the database; the worker asks how long it has been away, and gives up when it is too long.
            if self.is_in_contact:
                log.warning("the lease cannot be renewed (%s); training goes on", str(exc).partition("\n")[0])
            self.is_in_contact = False
            self._sightings.forget()
            return
        if not self.is_in_contact:
            log.warning("the database is back after %.0f s", self.silence_s)
        self.is_in_contact = True
        self._contact = time.monotonic()
        # A new attempt of ours may have begun while the statement ran: then the answer is about the old one.
        if not is_ours and lease is self._lease:
            self.is_lost = True
