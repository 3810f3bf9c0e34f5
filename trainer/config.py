"""The configuration of one training run: ``TrialSpec`` and its parts, frozen, unknown keys refused.

Defaults are the values of the distillation notes that distune grew from. Every field a number can vary is open to
the search space by its dotted name (``loss.kl_weight``, ``optim.lr``, …).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.spec import Count, Fraction, NonNegative, Positive, Spec
from trainer.student_spec import WhisperStudentSpec

DEFAULT_WER_THRESHOLD = 0.1
"""As distil-whisper has it."""


class DataSpec(Spec):
    """Where the speech lies, and what of it is used. Each place is a folder in LibriSpeech layout, or a ``.jsonl``
    manifest (``trainer/manifest.py``). The same for every trial of a study: nothing here can be searched.
    """

    train: str
    dev: str
    """The word error rate that the study minimises is measured here."""
    test: str | None = None
    """Held out: measured once for every finished trial, never told to the sampler or the pruner."""
    min_duration_s: Positive = 1.0
    max_duration_s: Positive = 30.0
    text: Literal["lower", "as_is"] = "lower"
    """What becomes of the transcripts that the data gives. Whisper was not trained on upper-case ones: they cost it 24
    nats a sentence against 7 in lower case. The teacher's own transcripts (``labels``) keep their casing."""
    hours: Positive | None = None
    """Train on this much of the training set: a subset balanced over its speakers and drawn by ``seed``; all of it when
    absent."""
    labels: Literal["transcript", "teacher"] = "transcript"
    """``teacher``: train on what the teacher hears, where that agrees with the transcript. Development and test sets
    keep their transcripts."""
    teacher_wer_threshold: NonNegative = DEFAULT_WER_THRESHOLD
    """With ``labels: teacher``: utterances whose teacher transcript has a higher word error rate are left out."""
    bucket_window: Annotated[int, Field(ge=2)] | None = None
    """Sort each run of this many training examples by length, so that a batch pads less; unsorted when absent."""

    @model_validator(mode="after")
    def _threshold_has_labels_to_judge(self) -> "DataSpec":
        if self.labels == "transcript" and self.teacher_wer_threshold != DEFAULT_WER_THRESHOLD:
            raise ValueError(
                "data.teacher_wer_threshold judges the teacher's transcripts, which are not used; "
                "set data.labels: teacher or remove the threshold"
            )
        return self

    @model_validator(mode="after")
    def _durations_are_ordered(self) -> "DataSpec":
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError(
                f"data.min_duration_s ({self.min_duration_s}) must be below data.max_duration_s ({self.max_duration_s})"
            )
        return self


class TeacherSpec(Spec):
    """The frozen Whisper encoder-decoder that is distilled."""

    model: str
    """A local directory, or a hub name, as ``from_pretrained`` takes it."""
    language: str | None = None
    """Prompt language of a multilingual model, e.g. ``en``; English-only and toy models take none."""
    device: Literal["auto", "cpu"] = "auto"
    """``cpu`` leaves the GPU's memory to the student: slow, in float32. ``auto``: where the student is."""
    load_in_8bit: bool = False
    """Half of fp16's memory on a GPU, by bitsandbytes (the extra ``8bit``)."""

    @model_validator(mode="after")
    def _eight_bits_are_on_a_gpu(self) -> "TeacherSpec":
        if self.load_in_8bit and self.device == "cpu":
            raise ValueError("teacher.load_in_8bit needs a GPU but teacher.device is cpu; remove one of them")
        return self


class TaidSpec(Spec):
    """TAID (arXiv:2501.16937): the KL's target moves from the student's own distribution to the teacher's.

    Both are softened by ``loss.temperature`` before they are interpolated, and the KL is scaled by its square, as
    without TAID. The target starts near the student, where the KL's gradient is small: a warm-up of its own, beside
    which ``loss.kl_warmup_fraction: 0`` is worth a thought.
    """

    space: Literal["logit", "prob"] = "logit"
    """``prob`` has exactly the teacher's share times the KL's gradient: it is a schedule on ``kl_weight``."""
    schedule: Literal["linear", "adaptive"] = "linear"
    """Linear over the trial, or Sakana AI's: never behind the linear one, faster while the loss falls."""
    start: Fraction = 0.1
    end: Fraction = 1.0
    """The teacher's share in the target, at the beginning and at the end of the trial."""
    alpha: Fraction = 5e-4
    """Adaptive only: by which part of the rest the share moves in one optimizer step, at most."""
    beta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Adaptive only: momentum of the loss's relative change, per optimizer step."""

    @model_validator(mode="after")
    def _the_target_moves_to_the_teacher(self) -> "TaidSpec":
        if self.start > self.end:
            raise ValueError(f"loss.taid.start ({self.start}) must not be above loss.taid.end ({self.end})")
        return self


class LossSpec(Spec):
    """L = CE + kl_weight · T² · KL(teacher ‖ student) + geo_weight · geodesic distance + hidden_weight · hidden MSE."""

    kl_weight: NonNegative = 0.020584
    geo_weight: NonNegative = 0.969909
    temperature: Positive = 2.0
    geo_states: Literal["encoder", "decoder"] = "encoder"
    """Whose last hidden states the geodesic term compares."""
    hidden_weight: NonNegative = 0.0
    """On the mean squared error between projected student states and teacher states: lengths count, not angles only."""
    hidden_states: Literal["encoder", "decoder"] = "encoder"
    """Whose last hidden states that error compares."""
    taid: TaidSpec | None = None
    """Off when absent."""
    kl_warmup_fraction: Fraction = 0.1
    """Fraction of the trial over which kl_weight rises linearly from 0."""


class OptimSpec(Spec):
    """AdamW with linear warm-up and cosine decay over the trial's full budget."""

    lr: Positive = 2.6e-4
    batch_size: Count = 8
    """Effective batch, in utterances: one optimizer step."""
    micro_batch_size: Count | None = None
    """How many of them run at a time; the whole batch when absent. Changes memory, never the gradient."""
    examples: Count = 80_000
    """The budget of a trial, in utterances seen (steps would not be comparable: batch_size is searched)."""
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegative = 0.01
    clip_norm: Positive = 1.0
    """Gradient norm limit, for the student and the projector separately."""


class EvaluationSpec(Spec):
    """When and how the word error rate is measured."""

    count: Count = 6
    """Evaluations per trial, at equal fractions of its budget; the last is the trial's result."""
    batch_size: Count = 32
    utterances: Count | None = None
    """A fixed subset of the development set, the same for every trial and seed; all of it when absent."""
    tokens_per_second: Positive = 6.5
    """Bound on a hypothesis: this many tokens per second of audio, plus 2."""
    bootstrap_samples: Count = 1000


class RuntimeSpec(Spec):
    """Where and how precisely the arithmetic is done."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """``auto``: bf16 where the GPU supports it, else fp16 on a GPU, fp32 on a CPU."""
    threads: Count | None = None
    """Torch threads of the training process; torch's own choice when absent."""
    loader_processes: Annotated[int, Field(ge=0)] = 0
    """Processes that decode audio ahead where the training set is too large to be kept in memory; 0: none."""
    activation_checkpointing: bool = False
    """Compute the student's activations again in the backward pass: less memory, more time, the same gradient."""


class TrialSpec(Spec):
    """Everything that determines one training run."""

    data: DataSpec
    teacher: TeacherSpec
    student: WhisperStudentSpec = WhisperStudentSpec()
    loss: LossSpec = LossSpec()
    optim: OptimSpec = OptimSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    runtime: RuntimeSpec = RuntimeSpec()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def evaluation_marks(self) -> tuple[int, ...]:
        """Examples seen at each evaluation: the same for every trial, whatever its batch size. The last ends it."""
        count = self.evaluation.count
        return tuple(round(index * self.optim.examples / count) for index in range(1, count + 1))

    @model_validator(mode="after")
    def _buckets_hold_several_batches(self) -> "TrialSpec":
        window, batch_size = self.data.bucket_window, self.optim.batch_size
        if window is not None and window <= batch_size:
            raise ValueError(
                f"data.bucket_window ({window}) must be above optim.batch_size ({batch_size}), or sorting within it "
                "changes no batch; raise it to some fifty batches, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_fit_the_budget(self) -> "TrialSpec":
        if self.evaluation.count > self.optim.examples:
            raise ValueError(
                f"evaluation.count ({self.evaluation.count}) is above optim.examples ({self.optim.examples}); lower it"
            )
        return self
