"""One claimed trial, from its first message to its outcome: the worker's side of a run."""

import logging
import time
from dataclasses import replace
from typing import Literal

from search import dispatch
from search.best import update_best
from search.child import ChildDiedError
from search.contact import Contact
from search.dispatch import Claim, Outcome
from search.errors import LeaseLostError
from search.keeper import LeaseKeeper
from search.messages import Failed, Finished, Judged, Reported, Stopped, Train, Up
from storage.database import is_connection_error
from storage.leases import Lease
from trainer.events import Checkpointed, Evaluated, Progress, TrialResult, Verdict

log = logging.getLogger(__name__)

TICK_S = 0.2
"""How often a worker looks up from its training process."""
RELEASE_GRACE_S = 60.0
"""How long a training process may take to write its last checkpoint when asked to release its trial."""


class ReleasedError(Exception):
    """The trial ends here so that another worker may go on; ``examples`` is how far it got."""

    def __init__(self, examples: int) -> None:
        super().__init__(f"released after {examples} examples")
        self.examples = examples


class TimedOutError(Exception):
    """The attempt took longer than the study allows."""


def run_trial(contact: Contact, claim: Claim) -> None:
    """Run a claimed trial to its outcome, or give it back when asked to stop.

    Raises:
        The database's own errors, when it was away for longer than the study's ``database_timeout_s``.
    """
    study = contact.study
    with contact.keep(claim.lease) as keeper:
        run = TrialRun(contact, claim, keeper)
        try:
            outcome = run.to_outcome()
            contact.patiently(dispatch.finish, study, run.lease, outcome)
        except LeaseLostError as exc:
            log.info("%s; stopping it here", exc)
            contact.child.kill()
            return
        except ReleasedError as exc:
            contact.release(run.lease, keeper, exc.examples)
            return
    log.info("trial %d attempt %d: %s", run.lease.number, run.lease.attempt, outcome.kind)
    if outcome.state == "COMPLETE":
        try:
            contact.patiently(update_best, study)
        except OSError as exc:
            # The result is in the database: whoever finishes next, and `distune best`, write the file again.
            log.error("best_params.json cannot be written (%s); free the disk, then run distune best", exc)


class TrialRun:
    """The state of one claimed trial while it runs here."""

    def __init__(self, contact: Contact, claim: Claim, keeper: LeaseKeeper) -> None:
        self._contact = contact
        self._study = contact.study
        self._claim = claim
        self._spec = claim.spec
        self._keeper = keeper
        self._started_at = time.monotonic()
        self._unreported: list[Evaluated] = []
        self._last_wer: float | None = None
        self._asked: Verdict = "go_on"
        self._asked_at = 0.0

    @property
    def lease(self) -> Lease:
        """The attempt that we own."""
        return self._claim.lease

    def to_outcome(self) -> Outcome:
        """Run attempts until one ends with an outcome.

        Raises:
            LeaseLostError: the trial belongs to another attempt.
            ReleasedError: it must be given back.
        """
        while True:
            if self._contact.stop.is_set():
                raise ReleasedError(self._keeper.checkpoint)
            try:
                self._begin()
                while (outcome := self._step()) is None:
                    pass
                return outcome
            except TimedOutError:
                limit_s = self._study.spec.study.trial_timeout_s
                return self._failed(f"it took longer than study.trial_timeout_s ({limit_s:g} s)", None)
            except ChildDiedError as exc:
                log.warning("trial %d attempt %d: %s", self.lease.number, self.lease.attempt, exc.reason)
                lease = self._contact.next_attempt(self.lease, self._keeper, exc.reason)
                self._claim = replace(self._claim, lease=lease)
                if lease.fruitless >= self._study.spec.study.max_attempts:
                    reason = f"no new checkpoint in {lease.fruitless} attempts: {exc.reason}"
                    return self._failed(reason, exc.log_tail)

    def _begin(self) -> None:
        """Send the attempt to the training process."""
        self._started_at = time.monotonic()
        self._asked = "go_on"
        folder = self._contact.folder.attempt(self.lease.number, self.lease.attempt)
        self._contact.child.send(
            Train(
                number=self.lease.number,
                attempt=self.lease.attempt,
                trial_path=str(folder.trial_path),
                spec=self._spec,
            )
        )

    def _step(self) -> Outcome | None:
        """Handle one message, or the lack of one; return the outcome when the trial is over here.

        Raises:
            ChildDiedError: the training process is gone.
            LeaseLostError: the trial belongs to another attempt.
            ReleasedError: the trial was given back.
        """
        message = self._contact.child.receive(TICK_S)
        if self._keeper.is_lost:
            raise LeaseLostError(self.lease.number, self.lease.attempt)
        self._flush()
        self._watch()
        return None if message is None else self._handle(message)

    def _handle(self, message: Up) -> Outcome | None:
        match message:
            case Reported(event=Progress() as event):
                self._keeper.examples = event.examples
            case Reported(event=Checkpointed() as event):
                self._keeper.checkpointed(event.examples)
            case Reported(event=Evaluated() as event):
                self._evaluated(event)
            case Finished(result=result):
                self._drain()
                return self._outcome("COMPLETE", "finished", result.dev.wer, result=result)
            case Stopped(examples=examples) if self._asked == "release":
                raise ReleasedError(examples)
            case Stopped():
                self._drain()
                return self._outcome("PRUNED", "pruned", self._last_wer)
            case Failed(cause="diverged"):
                return self._diverged(message)
            case Failed(cause="bad_input" | "out_of_memory"):
                return self._failed(message.reason, None)
            case Failed():
                reason, tail = message.reason, self._contact.child.log_tail()
                self._contact.child.kill()  # whatever it stumbled over, it may still be lying in it
                raise ChildDiedError(reason, tail)
        return None

    def _evaluated(self, event: Evaluated) -> None:
        """Report an evaluation and answer it. A step that was recorded before a takeover is not judged again."""
        self._last_wer = event.metrics.wer
        if event.examples > self._claim.last_step:
            self._unreported.append(event)
            self._flush()
        if self._asked == "go_on":
            self._send("go_on")

    def _flush(self) -> None:
        """Report what waits, oldest first, while the database is there. The pruner may end the trial."""
        while self._unreported and self._keeper.is_in_contact:
            event = self._unreported[0]
            try:
                should_prune = dispatch.report(self._study, self._claim, event.examples, event.metrics.wer)
            except Exception as exc:
                if not is_connection_error(exc):
                    raise
                self._keeper.is_in_contact = False  # the keeper finds out when it is back
                return
            self._unreported.pop(0)
            if should_prune and not event.last:
                self._ask("stop")

    def _drain(self) -> None:
        """Report what still waits before the trial is told, however long the database is away."""
        while self._unreported:
            event = self._unreported[0]
            self._contact.patiently(dispatch.report, self._study, self._claim, event.examples, event.metrics.wer)
            self._unreported.pop(0)

    def _watch(self) -> None:
        """Look at the clocks, and at the wish to stop."""
        limits, now = self._study.spec.study, time.monotonic()
        if self._contact.stop.is_set() or self._keeper.silence_s > limits.database_timeout_s:
            self._ask("release")
        if self._asked == "release" and now - self._asked_at > RELEASE_GRACE_S:
            self._contact.child.kill()
            raise ReleasedError(self._keeper.checkpoint)
        if now - self._contact.child.heard_at > limits.stall_timeout_s:
            tail = self._contact.child.log_tail()
            self._contact.child.kill()
            raise ChildDiedError(f"its training process said nothing for {limits.stall_timeout_s:g} s", tail)
        if limits.trial_timeout_s is not None and now - self._started_at > limits.trial_timeout_s:
            self._contact.child.kill()
            raise TimedOutError

    def _ask(self, verdict: Verdict) -> None:
        """Ask the run to end. Once is enough, and a wish to release is not overruled by the pruner."""
        if self._asked == "go_on":
            self._asked, self._asked_at = verdict, time.monotonic()
            self._send(verdict)

    def _send(self, verdict: Verdict) -> None:
        self._contact.child.send(Judged(number=self.lease.number, attempt=self.lease.attempt, verdict=verdict))

    def _diverged(self, failed: Failed) -> Outcome:
        """A loss that is no number tells the sampler something: the worst error rate seen, as a pruned trial."""
        self._drain()
        marks = [mark for mark in self._spec.evaluation_marks if mark > max(failed.examples, self._claim.last_step)]
        worst = self._contact.patiently(dispatch.worst_reported, self._study)
        if marks:
            self._contact.patiently(dispatch.report, self._study, self._claim, marks[0], worst)
        return self._outcome("PRUNED", "diverged", worst, reason=failed.reason)

    def _failed(self, reason: str, log_tail: str | None) -> Outcome:
        return self._outcome("FAIL", "failed", None, reason=reason, log_tail=log_tail)

    def _outcome(
        self,
        state: Literal["COMPLETE", "PRUNED", "FAIL"],
        kind: Literal["finished", "pruned", "diverged", "failed"],
        value: float | None,
        *,
        reason: str | None = None,
        log_tail: str | None = None,
        result: TrialResult | None = None,
    ) -> Outcome:
        return Outcome(
            state=state,
            kind=kind,
            value=value,
            reason=reason,
            log_tail=log_tail,
            result=None if result is None else result.model_dump(mode="json"),
            spec=self._spec.model_dump(mode="json"),
            attempt=self.lease.attempt,
        )
