"""One training run, from its first example, or from its last checkpoint, to its budget."""

import math
import time
from dataclasses import dataclass

import torch

from trainer.checkpoint import fingerprint_run, pack_state, unpack_state
from trainer.config import TrialSpec
from trainer.errors import DivergedError, MemoryExhaustedError, StoppedError
from trainer.evaluation import EvaluationSet, evaluate
from trainer.events import Checkpointed, Checkpoints, Evaluated, Metrics, Report, RunLog, TrialResult, Verdict
from trainer.journal import Journal
from trainer.loader import load
from trainer.material import Material
from trainer.order import Order
from trainer.progress import Pace, check_gradients, check_loss, watch
from trainer.runtime import measure_peak_memory, reset_peak_memory
from trainer.state import TrainState, start_state
from trainer.step import take_step


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's material and whom it talks to."""

    spec: TrialSpec
    material: Material
    checkpoints: Checkpoints
    report: Report
    journal: Journal
    fingerprint: str


def train(spec: TrialSpec, material: Material, checkpoints: Checkpoints, report: Report, log: RunLog) -> TrialResult:
    """Train and evaluate one student; go on from the last checkpoint if there is one.

    Evaluations are reported after the checkpoint that holds them is saved, and a run that goes on reports all of them
    again: a caller that died in between loses none, and ignores those it knows.

    Raises:
        StoppedError: The caller said so.
        DivergedError: The loss is not finite.
        MemoryExhaustedError: Not even one example at a time fits on the device.
        BadInputError: The checkpoint is not this run's, an audio file cannot be decoded, or an adapter learns nothing.
    """
    reset_peak_memory(material.runtime)
    with Journal(log) as journal:
        run = Run(
            spec=spec,
            material=material,
            checkpoints=checkpoints,
            report=report,
            journal=journal,
            fingerprint=fingerprint_run(spec, material.train.fingerprint()),
        )
        state = resume_or_start(run)
        journal.write_config(
            spec,
            device=str(material.runtime.device),
            precision=material.runtime.precision,
            parameters=state.student.count_parameters(),
            trainable_parameters=state.student.count_trainable(),
            resumed_after_examples=state.examples,
        )
        try:
            for evaluated in state.evaluations:
                obey(run, state, report(evaluated))
            train_to_budget(run, state)
            test = measure(run, state, material.test) if material.test else None
        except torch.OutOfMemoryError as exc:  # a step deals with its own
            raise MemoryExhaustedError(
                "an evaluation does not fit into the device's memory; lower evaluation.batch_size"
            ) from exc
        finally:
            journal.write_history(state.history, state.evaluations)
        return TrialResult(
            dev=state.evaluations[-1].metrics,
            test=test,
            examples=state.examples,
            steps=state.steps,
            parameters=state.student.count_parameters(),
            trainable_parameters=state.student.count_trainable(),
            peak_memory_bytes=measure_peak_memory(material.runtime),
            train_seconds=state.train_seconds,
            evaluation_seconds=state.evaluation_seconds,
        )


def train_to_budget(run: Run, state: TrainState) -> None:
    """Take steps until the budget is spent, and evaluate wherever a mark is reached."""
    optim, dataset = run.spec.optim, run.material.train
    order = Order(dataset.token_counts, seed=run.spec.seed, window=run.spec.data.bucket_window)
    indices = order.steps(state.examples, optim.examples, optim.batch_size)
    steps = load(dataset, indices, processes=run.spec.runtime.loader_processes)
    pace = Pace(examples=state.examples)
    evaluate_marks(run, state, pace)  # a run released while it evaluated goes on with that evaluation
    for examples in steps:
        take_step(run.spec, run.material, state, examples)
        check_gradients(run.spec, run.material.runtime, state)
        progress = watch(run.spec, run.material.runtime, state, run.journal, pace)
        obey(run, state, run.report(progress), pace)
        evaluate_marks(run, state, pace)


def evaluate_marks(run: Run, state: TrainState, pace: Pace) -> None:
    """Evaluate if a mark was reached and not yet evaluated; save, then report.

    An event carries the mark, not the examples seen, which depend on the batch size; a step that passes two marks gives
    both the same numbers.
    """
    due = [mark for mark in run.spec.evaluation_marks[len(state.evaluations) :] if mark <= state.examples]
    if not due:
        return
    check_loss(state)
    state.train_seconds += pace.end_lap()
    metrics = measure(run, state, run.material.dev)
    for mark in due:
        event = Evaluated(examples=mark, metrics=metrics, last=mark == run.spec.optim.examples)
        state.evaluations.append(event)
        run.journal.add_evaluation(event)
    pace.skip_lap()
    answers = [save(run, state)]
    run.journal.write_history(state.history, state.evaluations)
    answers += [run.report(event) for event in state.evaluations[-len(due) :]]
    for answer in answers:
        obey(run, state, answer)


def measure(run: Run, state: TrainState, chosen: EvaluationSet) -> Metrics:
    """Evaluate the student as it is; the caller may stop the run in the middle.

    Raises:
        StoppedError: The caller said so.
        DivergedError: A loss is not finite.
    """
    started = time.monotonic()
    metrics = evaluate(
        state.student,
        chosen,
        vocabulary=run.material.vocabulary,
        teacher=run.material.teacher,
        spec=run.spec.evaluation,
        runtime=run.material.runtime,
        tick=lambda: obey(run, state, run.report(None)),
    )
    state.evaluation_seconds += time.monotonic() - started
    for value in (metrics.cross_entropy, metrics.kl):
        if value is not None and not math.isfinite(
            value
        ):  # the last step's loss was finite, the weights it left are not
            raise DivergedError(state.examples, value)
    return metrics


def obey(run: Run, state: TrainState, verdict: Verdict, pace: Pace | None = None) -> None:
    """Go on, or end the run as the caller said.

    Raises:
        StoppedError: The run ends here, with a checkpoint if another process is to go on.
    """
    if verdict == "go_on":
        return
    if verdict == "release":
        state.train_seconds += pace.end_lap() if pace else 0.0
        save(run, state)
    raise StoppedError(state.examples)


def save(run: Run, state: TrainState) -> Verdict:
    """Save the state, say so, and return the answer."""
    run.checkpoints.save(state.examples, pack_state(state, run.fingerprint))
    return run.report(Checkpointed(examples=state.examples))


def resume_or_start(run: Run) -> TrainState:
    """Build a fresh state, and bring it to where the last checkpoint was taken."""
    state = start_state(run.spec, run.material)
    blob = run.checkpoints.load_latest()
    if blob is not None:
        unpack_state(blob, state, run.fingerprint, run.material.runtime)
    return state
