"""What runs are made from: data, vocabulary and models, loaded once and shared by one run after another."""

from dataclasses import dataclass

from trainer.batches import AudioDataset, build_dataset
from trainer.config import TrialSpec
from trainer.data import scan
from trainer.evaluation import EvaluationSet, choose_utterances
from trainer.pretrained import Pretrained, load_pretrained
from trainer.runtime import Runtime, resolve_runtime
from trainer.teacher import OnlineTeacher, place_teacher
from trainer.vocabulary import Vocabulary, build_vocabulary, require_same_vocabulary


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run is made from and never changes."""

    train: AudioDataset
    dev: EvaluationSet
    test: EvaluationSet | None
    vocabulary: Vocabulary
    source: Pretrained
    """Where the student's layers come from."""
    teacher: OnlineTeacher
    teacher_width: int
    runtime: Runtime


def key_of(spec: TrialSpec) -> str:
    """Return the parts of a configuration that loading depends on, as text."""
    kept = spec.model_dump_json(include={"data": True, "teacher": True, "runtime": True})
    return f"{kept} {spec.student.model} {spec.evaluation.utterances}"


def load_material(spec: TrialSpec) -> Material:
    """Scan the data, load the models, and check that they fit together.

    Raises:
        BadInputError: Data or a model directory is not what it must be, or they do not fit together.
    """
    runtime = resolve_runtime(spec.runtime)
    pretrained = load_pretrained(spec.teacher.model)
    source = pretrained
    if spec.student.model is not None and spec.student.model != spec.teacher.model:
        source = load_pretrained(spec.student.model)
        require_same_vocabulary(pretrained, source)
    vocabulary = build_vocabulary(source, spec.teacher.language)

    def read(path: str) -> AudioDataset:
        return build_dataset(scan(path, spec.data), vocabulary, source.log_mel, pretrained.log_mel)

    return Material(
        train=read(spec.data.train),
        dev=choose_utterances(read(spec.data.dev), spec.evaluation.utterances),
        test=choose_utterances(read(spec.data.test), None) if spec.data.test else None,
        vocabulary=vocabulary,
        source=source,
        teacher=OnlineTeacher(place_teacher(pretrained, spec.teacher, runtime)),
        teacher_width=int(pretrained.config.d_model),
        runtime=runtime,
    )
