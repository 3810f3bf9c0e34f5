"""What is checked once, before the first trial: the data can be read, the models fit, the loss reaches the student."""

from collections.abc import Callable

from trainer.batches import AudioDataset
from trainer.config import TrialSpec
from trainer.data import describe_conversions, verify
from trainer.evaluation import EvaluationSet, evaluate
from trainer.events import Metrics, PreflightResult
from trainer.material import Material
from trainer.reach import measure_reach
from trainer.students import Student

POOR_TEACHER_WER = 0.5


def preflight(spec: TrialSpec, material: Material, tick: Callable[[], None]) -> PreflightResult:
    """Decode every file once, build the student once, and measure what trains it, and the teacher.

    ``tick`` is called now and then.

    Loading ``material`` has already checked folders, transcripts, headers, model directories and vocabularies.

    Raises:
        BadInputError: A file cannot be decoded, the student cannot be built, or a part of it would learn nothing.
    """
    sets = [material.train, material.dev.dataset, *([material.test.dataset] if material.test else [])]
    for dataset in sets:
        verify(dataset.scan, tick)
    reach = measure_reach(spec, material)
    tick()

    def measure(chosen: EvaluationSet) -> Metrics:
        return evaluate(
            Student(material.teacher.model, frozen_encoder=True, frozen_decoder=True),
            chosen,
            vocabulary=material.vocabulary,
            teacher=None,
            spec=spec.evaluation,
            runtime=material.teacher.runtime(material.runtime),
            tick=tick,
            is_teacher=True,
        )

    teacher_dev = measure(material.dev)
    return PreflightResult(
        train=material.train.scan.summarize(),
        dev=material.dev.dataset.scan.summarize(),
        test=material.test.dataset.scan.summarize() if material.test else None,
        teacher_dev=teacher_dev,
        teacher_test=measure(material.test) if material.test else None,
        student_parameters=reach.parameters,
        trainable_parameters=reach.trainable_parameters,
        trainable_tensors=reach.trainable_tensors,
        reach=reach.terms,
        has_dropout=reach.has_dropout,
        device=str(material.runtime.device),
        precision=material.runtime.precision,
        warnings=tuple(collect_warnings(spec, sets, teacher_dev)),
    )


def collect_warnings(spec: TrialSpec, sets: list[AudioDataset], teacher_dev: Metrics) -> list[str]:
    """Return a sentence for everything that is allowed but worth knowing before GPU time is spent."""
    warnings = []
    for dataset in sets:
        warnings += describe_conversions(dataset.scan)
        if dataset.scan.dropped:
            counts = ", ".join(f"{count} {reason}" for reason, count in dataset.scan.dropped.items())
            warnings.append(f"{dataset.scan.path}: left out {counts}")
    train = sets[0]
    for other in sets[1:]:
        # Name and length: manifests of different corpora may both have an audio/0001.flac.
        shared = {(u.name, u.header) for u in train.utterances} & {(u.name, u.header) for u in other.utterances}
        if shared:
            first = min(name for name, _ in shared)
            warnings.append(
                f"{len(shared)} utterances of {other.scan.path} are also in {train.scan.path}, such as {first}: "
                "the word error rate says little"
            )
    if spec.data.labels == "teacher":
        minutes = train.scan.duration_s * teacher_dev.rtf / 60
        warnings.append(
            f"data.labels is teacher: every training process transcribes {train.scan.path} before its first trial, "
            f"in about {minutes:.0f} minutes at the teacher's measured speed"
        )
    if teacher_dev.wer > POOR_TEACHER_WER:
        warnings.append(
            f"the teacher {spec.teacher.model} has a word error rate of {teacher_dev.wer:.1%} on {spec.data.dev}: "
            "little can be learnt from it; check teacher.language and that the transcripts belong to the audio"
        )
    return warnings
