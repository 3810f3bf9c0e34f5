"""What a run tells its caller while it goes, and what it ends with: frozen, and plain enough for JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field


class Event(BaseModel):
    """Base of everything that leaves a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metrics(Event):
    """What one evaluation on one set measured."""

    wer: float
    """Corpus-level word error rate as a fraction: errors / words. Above 1 is possible."""
    errors: int
    words: int
    """Words of the normalised references."""
    utterances: int
    interval: tuple[float, float]
    """95 % bootstrap interval of ``wer`` over utterances."""
    cross_entropy: float
    """Nats per token against the transcript."""
    kl: float | None
    """Nats per token, KL(teacher ‖ student) at temperature 1; None where no teacher is compared with."""
    rtf: float
    """Compute time / audio time of decoding: below 1 is faster than real time."""


class Progress(Event):
    """Where the run stands; sent now and then."""

    kind: Literal["progress"] = "progress"
    examples: int
    loss: float
    lr: float
    examples_per_second: float


class Evaluated(Event):
    """One evaluation on the development set. The caller's answer decides whether the run goes on."""

    kind: Literal["evaluated"] = "evaluated"
    examples: int
    metrics: Metrics
    last: bool
    """True for the evaluation at the end of the budget."""


class Checkpointed(Event):
    """A checkpoint is on disk: a takeover loses nothing before ``examples``."""

    kind: Literal["checkpointed"] = "checkpointed"
    examples: int


class Labelled(Event):
    """The teacher has transcribed some of the training set, before the run's first step."""

    kind: Literal["labelled"] = "labelled"
    utterances: int
    total: int


class HistoryRow(Event):
    """Means over the training steps since the row before; there are about a hundred rows in a run."""

    examples: int
    steps: int
    loss: float
    cross_entropy: float
    kl: float | None
    """To the teacher, or to TAID's target; scaled by temperature², before its weight; None where it is not trained."""
    geodesic: float | None
    """Radians, before its weight; None where the term is not trained."""
    hidden: float | None
    """Mean squared error of projected hidden states, before its weight; None where the term is not trained."""
    taid_share: float | None
    """The teacher's share in TAID's target, at the row's last step; None without TAID."""
    lr: float


class TrialResult(Event):
    """What a run that reached its budget ended with."""

    dev: Metrics
    test: Metrics | None
    examples: int
    steps: int
    parameters: int
    trainable_parameters: int
    peak_memory_bytes: int
    """Peak of the device's allocator on CUDA; peak resident set of the process on a CPU."""
    train_seconds: float
    evaluation_seconds: float
    """Time in training and in evaluation, over all attempts."""


class Split(Event):
    """What the scan of one data set found."""

    path: str
    utterances: int
    hours: float
    speakers: int
    dropped: dict[str, int]
    """Reason → how many utterances were left out for it."""


class TermReach(Event):
    """What one term of the loss trains, as a measured backward pass of it alone says."""

    term: str
    """``cross_entropy``, ``kl`` or ``geodesic``."""
    tensors: int
    """Trainable tensors of the student that get a gradient from it. 0: it trains nothing that is kept."""


class PreflightResult(Event):
    """What was checked once, before the first trial."""

    train: Split
    dev: Split
    test: Split | None
    teacher_dev: Metrics
    teacher_test: Metrics | None
    student_parameters: int
    trainable_parameters: int
    trainable_tensors: int
    reach: tuple[TermReach, ...]
    has_dropout: bool
    """Whether ``student.dropout`` changes anything."""
    device: str
    precision: str
    warnings: tuple[str, ...] = ()
    dead_knobs: tuple[str, ...] = ()
    """Searched fields that cannot change the student; filled in by whoever knows what is searched."""


RunEvent = Annotated[Progress | Evaluated | Checkpointed | Labelled, Field(discriminator="kind")]

Verdict = Literal["go_on", "stop", "release"]
"""``stop``: end now, nothing more is wanted. ``release``: write a checkpoint, then end; another process goes on."""


@runtime_checkable
class Report(Protocol):
    """Where a run's events go. Called at every optimizer step with None, and with each event."""

    def __call__(self, event: RunEvent | None) -> Verdict:
        """Take an event, if there is one, and say whether the run goes on. Cheap when there is none."""
        ...


@runtime_checkable
class Checkpoints(Protocol):
    """Where a run keeps its state: bytes in, the newest undamaged bytes out."""

    def save(self, examples: int, blob: bytes) -> None:
        """Keep ``blob``, atomically, as the state after ``examples``."""
        ...

    def load_latest(self) -> bytes | None:
        """Return the newest state whose checksum holds, or None to start afresh."""
        ...


@runtime_checkable
class RunLog(Protocol):
    """The folder of one attempt, where a run leaves what people read."""

    @property
    def folder(self) -> Path:
        """The folder itself: TensorBoard writes its own files under ``tb/``."""
        ...

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        """Write ``content`` as the folder's file ``name``, atomically, in place of an older one."""
        ...
