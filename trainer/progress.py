"""Where a run stands: a finite loss, a row of history now and then, a progress event about once a second."""

import math
import time
from dataclasses import dataclass

import torch

from trainer.adapters import require_gradients
from trainer.config import TrialSpec
from trainer.errors import DivergedError
from trainer.events import HistoryRow, Progress
from trainer.journal import Journal
from trainer.runtime import Runtime
from trainer.state import TERMS, TrainState

HISTORY_ROWS = 100
"""Rows of history in a run, at fixed fractions of its budget."""
PROGRESS_INTERVAL_S = 1.0
SMALLEST_SCALE = 1.0
"""A gradient scale below this means that fp16 overflowed at every step for a long while."""


@dataclass(kw_only=True)
class Pace:
    """When the run last told where it stands, and when its clock was last read."""

    examples: int
    told_at: float = 0.0
    clock: float = 0.0

    def __post_init__(self) -> None:
        self.told_at = self.clock = time.monotonic()

    def end_lap(self) -> float:
        """Return the seconds since the clock was last read."""
        now = time.monotonic()
        lap_s, self.clock = now - self.clock, now
        return lap_s

    def skip_lap(self) -> None:
        """Take the time since the clock was last read, spent on an evaluation, as if it had not passed."""
        self.told_at += self.end_lap()


def watch(spec: TrialSpec, runtime: Runtime, state: TrainState, journal: Journal, pace: Pace) -> Progress | None:
    """Check that the loss is finite, keep the history, and return a progress event about once a second."""
    budget = spec.optim.examples
    last_row = state.history[-1].examples if state.history else 0
    row_is_due = state.examples * HISTORY_ROWS // budget > last_row * HISTORY_ROWS // budget
    now = time.monotonic()
    progress_is_due = now - pace.told_at >= PROGRESS_INTERVAL_S
    if runtime.is_cuda and not (row_is_due or progress_is_due):
        return None
    means = dict(zip(TERMS, check_loss(state), strict=True))
    lr = float(state.optimizer.param_groups[0]["lr"])
    if row_is_due:
        row = HistoryRow(
            examples=state.examples,
            steps=state.steps,
            lr=lr,
            loss=means["loss"],
            cross_entropy=means["cross_entropy"],
            kl=means["kl"] if spec.loss.kl_weight > 0 else None,
            geodesic=means["geodesic"] if state.projector else None,
            hidden=means["hidden"] if state.hidden_projector else None,
            taid_share=float(state.taid.share) if state.taid else None,
        )
        state.history.append(row)
        journal.add_row(row)
        state.sums = torch.zeros_like(state.sums)
        state.num_summed = 0
    if not progress_is_due:
        return None
    speed = (state.examples - pace.examples) / (now - pace.told_at)
    pace.told_at, pace.examples = now, state.examples
    return Progress(examples=state.examples, loss=means["loss"], lr=lr, examples_per_second=speed)


def check_gradients(spec: TrialSpec, runtime: Runtime, state: TrainState) -> None:
    """Check, once in a run and as soon as it can be told, that every adapter has received a gradient.

    That is after two steps that moved the weights; with fp16 after the warm-up, because there the first ``lora_B``, as
    small as the first learning rates, may round to zero and take the gradient of ``lora_A`` with it.

    Raises:
        BadInputError: An adapter learns nothing.
    """
    due = 2 * spec.optim.batch_size
    if runtime.precision == "fp16":
        due += math.ceil(spec.optim.warmup_fraction * spec.optim.examples)
    if spec.student.lora is not None and not state.has_proved_gradients and state.scheduled_examples >= due:
        require_gradients(state.student, state.optimizer)
        state.has_proved_gradients = True


def check_loss(state: TrainState) -> list[float]:
    """Return the means of the loss and its terms since the last row of the history. A GPU synchronisation.

    Raises:
        DivergedError: The loss is not finite, or fp16 can no longer be scaled into its range.
    """
    means: list[float] = (state.sums / max(state.num_summed, 1)).tolist()
    if not math.isfinite(means[0]):
        raise DivergedError(state.examples, means[0])
    if state.scaler.is_enabled() and state.scaler.get_scale() < SMALLEST_SCALE:
        raise DivergedError(state.examples, math.inf)
    return means
