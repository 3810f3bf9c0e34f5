"""The study's preflight: data, models and the teacher's own error rate, checked once before the first trial.

It is claimed under a lease like a trial, runs in the training process of the first worker, and its findings are kept
with the study. A finding that forbids the study ends it with its sentence.
"""

import logging

from sqlalchemy import update

from search.child import ChildDiedError
from search.contact import Contact
from search.dead_knobs import judge
from search.errors import LeaseLostError
from search.messages import Checked, Failed, Preflight, Up
from search.study import OpenStudy, forget_preflight, refresh
from storage import leases
from storage.leases import Lease
from storage.schema import studies
from trainer.events import PreflightResult

log = logging.getLogger(__name__)

TICK_S = 0.2
"""How often a worker looks up from its training process."""


def run_preflight(contact: Contact, lease: Lease) -> None:
    """Check the study, or give the preflight back when asked to stop."""
    study = contact.study
    with contact.keep(lease) as keeper:
        try:
            while True:
                match _ask(contact):
                    case Checked(result=result):
                        return contact.patiently(accept, study, lease, result)
                    case Failed(cause="error", reason=reason):
                        log.error("the preflight failed: %s\n%s", reason, contact.child.log_tail())
                        contact.child.kill()
                        lease = contact.next_attempt(lease, keeper, reason)
                        if lease.fruitless >= study.spec.study.max_attempts:
                            sentence = f"the preflight failed {lease.fruitless} times: {reason}"
                            return contact.patiently(refuse, study, lease, sentence)
                    case Failed(reason=reason):
                        return contact.patiently(refuse, study, lease, reason)
                    case _:
                        return contact.release(lease, keeper, 0)
        except LeaseLostError:
            log.info("another worker took the preflight over")
            contact.child.kill()


def _ask(contact: Contact) -> Up | None:
    """Return the training process's answer; None when asked to stop meanwhile."""
    try:
        contact.child.send(Preflight(spec=contact.study.spec.trial))
        while not contact.stop.is_set():
            message = contact.child.receive(TICK_S)
            if message is not None:
                return message
    except ChildDiedError as exc:
        return Failed(cause="error", reason=exc.reason)
    contact.child.kill()  # there is nothing to save
    return None


def accept(study: OpenStudy, lease: Lease, result: PreflightResult) -> None:
    """Keep what the preflight found, and open the study for trials, unless it is strict and searches a dead knob.

    Raises:
        LeaseLostError: another worker's preflight counts.
    """
    judged, refusal = judge(study.spec, result)
    _close(study, lease, preflight=judged.model_dump(mode="json"), refusal=refusal)


def refuse(study: OpenStudy, lease: Lease, sentence: str) -> None:
    """End the study before its first trial, with the sentence that says why.

    Raises:
        LeaseLostError: another worker's preflight counts.
    """
    _close(study, lease, refusal=sentence)


def _close(study: OpenStudy, lease: Lease, **values: object) -> None:
    with study.database.engine.begin() as connection:
        if not leases.hold_for_write(connection, lease):
            raise LeaseLostError(lease.number, lease.attempt)
        connection.execute(update(studies).where(studies.c.study_id == study.study_id).values(**values))
    leases.finish(study.database.engine, lease)


def reopen(study: OpenStudy) -> OpenStudy:
    """Let a refused study be checked again: what stood in its way may be mended."""
    with study.database.engine.begin() as connection:
        connection.execute(
            update(studies).where(studies.c.study_id == study.study_id).values(refusal=None, preflight=None)
        )
        forget_preflight(connection, study.study_id)
    return refresh(study)
