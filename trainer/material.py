"""What runs are made from: data, vocabulary and models, loaded once and shared by one run after another."""

from dataclasses import dataclass

from trainer.batches import AudioDataset, build_dataset
from trainer.config import TrialSpec
from trainer.data import scan
from trainer.evaluation import EvaluationSet, choose_utterances
from trainer.labels import Tell, Transcripts, label_by_teacher
from trainer.pretrained import Pretrained, load_pretrained
from trainer.runtime import Runtime, resolve_runtime
from trainer.subset import take_hours
from trainer.teacher import OnlineTeacher, place_teacher
from trainer.utterances import Scan
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
    drawn_by = spec.seed if spec.data.hours is not None else None
    return f"{kept} {spec.student.model} {spec.evaluation.utterances} {spec.evaluation.tokens_per_second} {drawn_by}"


def load_material(
    spec: TrialSpec, transcripts: Transcripts | None = None, tell: Tell = lambda done, total: None
) -> Material:
    """Scan the data, load the models, and check that they fit together; label the training set where asked to.

    ``transcripts`` are what a teacher said before, and ``tell`` hears how far it is.

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

    def read(scanned: Scan) -> AudioDataset:
        return build_dataset(scanned, vocabulary, source.log_mel, pretrained.log_mel)

    # The development and test sets first: what is wrong with them should be said before a teacher transcribes.
    dev = choose_utterances(read(scan(spec.data.dev, spec.data)), spec.evaluation.utterances)
    test = choose_utterances(read(scan(spec.data.test, spec.data)), None) if spec.data.test else None
    found = scan(spec.data.train, spec.data)
    train = read(found if spec.data.hours is None else take_hours(found, spec.data.hours, spec.seed))
    online = OnlineTeacher(place_teacher(pretrained, spec.teacher, runtime))
    if spec.data.labels == "teacher":
        train = label_by_teacher(
            train,
            online.model,
            spec,
            vocabulary=vocabulary,
            runtime=online.runtime(runtime),
            transcripts={} if transcripts is None else transcripts,
            tell=tell,
        )
    return Material(
        train=train,
        dev=dev,
        test=test,
        vocabulary=vocabulary,
        source=source,
        teacher=online,
        teacher_width=int(pretrained.config.d_model),
        runtime=runtime,
    )
