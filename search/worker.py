"""The worker: one process per GPU slot. Claims trials, drives its training process, speaks to the study.

It imports no torch: it renews its lease and talks to the database on time, whatever the training does. A database
that is away stops nobody: reports wait here while training goes on.
"""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from optuna.storages import RDBStorage

from search import dispatch
from search.child import TrainingChild
from search.contact import Contact
from search.dispatch import Claim, PreflightClaim, Sightings, Spent, Wait
from search.errors import SearchError, StudyError
from search.preflight import run_preflight
from search.study import OpenStudy, list_open_names, load_study, open_storage, refresh
from search.trial_run import run_trial
from storage import leases
from storage.database import Database, is_connection_error, retrying

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
IDLE_POLL_S = 2.0
"""How often a worker without a study of its own looks for one."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is told when it starts."""

    study: str | None
    """Serve this study and end with it; None serves every open study in turn, and waits when there is none."""
    name: str


class StopRequest:
    """SIGTERM and Ctrl-C. The first asks: checkpoint, release, end. The second ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.before_exit: Callable[[], None] = lambda: None
        """What the second signal does before it ends the process."""
        self._is_asked = False

    def install(self) -> None:
        """Handle the signals of this process."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked:
            # The lease runs out by itself, and the training process dies with us. What was reported is committed.
            self.before_exit()
            os._exit(EXIT_INTERRUPTED)
        self._is_asked = True
        # Not from here: the main thread may hold the event's own lock, in the middle of its wait.
        threading.Thread(target=self.event.set, name="stop", daemon=True).start()


def worker_name() -> str:
    """Return a name that no other worker has, and that tells a person where to look."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def run_worker(options: WorkerOptions, database: Database, stop: threading.Event) -> None:
    """Work until the study is over, or until asked to stop.

    Raises:
        StudyError: the study named does not exist.
        The database's own errors, when it was away for longer than the study's ``database_timeout_s``.
    """
    child = TrainingChild()
    try:
        for study in _studies(options, database, stop):
            try:
                _serve(study, options, child, stop)
            except StudyError as exc:
                if options.study is not None:
                    raise
                log.warning("%s; going on with the other studies", exc)
    finally:
        child.close()
        try:
            leases.forget_worker(database.engine, options.name)
        except Exception as exc:
            if not is_connection_error(exc):
                raise
            log.warning("the database is away; this worker stays on its list for now")


def _studies(options: WorkerOptions, database: Database, stop: threading.Event) -> Iterator[OpenStudy]:
    """Yield the study named, once; or every study in turn, for as long as the worker lives."""
    if options.study is not None:
        yield retrying(stop=stop)(load_study, options.study, database)
        return
    storage: RDBStorage | None = None
    passed_over: set[str] = set()
    while not stop.is_set():
        names = [each for each in retrying(stop=stop)(list_open_names, database) if each not in passed_over]
        for name in names:
            storage = storage or open_storage(database)
            try:
                study = retrying(stop=stop)(load_study, name, database, storage)
            except StudyError as exc:
                log.warning("%s; going on with the other studies", exc)
                passed_over.add(name)
                continue
            if not stop.is_set():
                yield study
        if not names:
            stop.wait(IDLE_POLL_S)


def _serve(study: OpenStudy, options: WorkerOptions, child: TrainingChild, stop: threading.Event) -> None:
    """Run trials of one study until its budget is spent or refused, or until asked to stop."""
    ttl_s = study.spec.study.lease_ttl_s
    sightings = Sightings(ttl_s=ttl_s)
    contact = Contact(study=study, worker=options.name, sightings=sightings, child=child, stop=stop)
    log.info("serving study %s", study.name)
    while not stop.is_set():
        match _claim(contact):
            case Claim() as claimed:
                run_trial(contact, claimed)
            case PreflightClaim() as claimed:
                run_preflight(contact, claimed.lease)
            case Wait():
                stop.wait(min(ttl_s / 8, IDLE_POLL_S))
            case Spent():
                return


def _claim(contact: Contact) -> Claim | PreflightClaim | Wait | Spent:
    """Claim, and be patient with a database that is away: a half-made claim is adopted later."""
    started = time.monotonic()
    while True:
        try:
            contact.study = refresh(contact.study)
            if contact.study.refusal is not None:
                return Spent()
            leases.see_worker(
                contact.study.database.engine, contact.worker, study_id=contact.study.study_id, number=None
            )
            return dispatch.claim(contact.study, contact.worker, contact.sightings)
        except Exception as exc:
            if isinstance(exc, SearchError) or not is_connection_error(exc):
                raise
            if time.monotonic() - started > contact.study.spec.study.database_timeout_s:
                raise
            contact.sightings.forget()
            log.warning("the database cannot be reached; trying again")
            contact.study.database.revive()
            if contact.stop.wait(1.0):
                return Wait()
