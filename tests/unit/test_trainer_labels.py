"""Training on the teacher's own transcripts, and teachers that hear other features than their students."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.tiny import WORDS, FolderLog, Listener, MemoryCheckpoints, World, make_model, make_world
from trainer.config import DataSpec
from trainer.errors import BadInputError, StoppedError
from trainer.evaluation import choose_utterances, evaluate
from trainer.events import Labelled
from trainer.material import Material, load_material
from trainer.session import Session
from trainer.students import Student

ANY_RATE = {"labels": "teacher", "teacher_wer_threshold": 1e9}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One whose teacher says something that a normaliser takes for words."""
    return replace(make_world(), model=make_model(tmp_path_factory.mktemp("labels") / "model", seed=4))


@pytest.fixture(scope="module")
def heard(world: World) -> Material:
    return load_material(world.spec(data=ANY_RATE))


def write_manifest(path: Path, material: Material, *, wrong: int = 0) -> str:
    """Write what the teacher said, in upper case, as transcripts; the first ``wrong`` of them with a word too many."""
    lines = [
        {"audio": str(u.audio), "text": u.text.upper() + (" lamp" if index < wrong else "")}
        for index, u in enumerate(material.train.utterances)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_labels_are_what_an_evaluation_of_the_teacher_hears(world: World, heard: Material) -> None:
    texts = [u.text for u in heard.train.utterances]
    assert len(texts) == 18
    assert [tuple(row) for row in heard.vocabulary.encode(texts)] == [heard.train[i].token_ids for i in range(18)]
    teacher = Student(heard.teacher.model, frozen_encoder=True, frozen_decoder=True)

    def tick() -> None:
        pass

    metrics = evaluate(
        teacher,
        choose_utterances(heard.train, None),
        vocabulary=heard.vocabulary,
        teacher=None,
        spec=world.spec().evaluation,
        runtime=heard.runtime,
        tick=tick,
        is_teacher=True,
    )
    assert metrics.errors == 0
    assert load_material(world.spec()).dev.dataset.utterances == heard.dev.dataset.utterances


def test_the_teachers_casing_stays_where_transcripts_are_lowered(world: World, tmp_path: Path) -> None:
    loud = make_model(tmp_path / "model", seed=26, words=tuple(word.upper() for word in WORDS))
    material = load_material(replace(world, model=loud).spec(data=ANY_RATE))
    assert all(u.text.isupper() for u in material.train.utterances)
    assert all(u.text.islower() for u in material.dev.dataset.utterances)


def test_only_utterances_within_the_threshold_are_kept_and_the_others_counted(
    world: World, heard: Material, tmp_path: Path
) -> None:
    train = write_manifest(tmp_path / "train.jsonl", heard, wrong=5)
    material = load_material(world.spec(data={"train": train, "labels": "teacher"}))
    assert material.train.scan.dropped == {"teacher's transcript with a word error rate above 0.1": 5}
    by_file = {u.audio: u.text for u in heard.train.utterances}
    assert len(material.train) == 13
    assert all(u.text == by_file[u.audio] for u in material.train.utterances)
    for index in range(13):  # features were carried over from the pass that transcribed
        example = material.train[index]
        assert example.token_ids == material.vocabulary.encode([material.train.utterances[index].text])[0]
    with pytest.raises(
        BadInputError, match=r"is left after filtering \(18 teacher's transcript with a .*; widen .*thr"
    ):
        load_material(world.spec(data={"labels": "teacher"}))


def test_the_fingerprint_is_that_of_the_data_whatever_the_teacher_hears(world: World, heard: Material) -> None:
    assert heard.train.fingerprint() == load_material(world.spec()).train.fingerprint()


def test_a_session_transcribes_once_and_tells_how_far_it_is(world: World, tmp_path: Path) -> None:
    session, listener = Session(), Listener()
    first = session.prepare(world.spec(data=ANY_RATE, evaluation={"batch_size": 7}), listener)
    told = [event for event in listener.events if isinstance(event, Labelled)]
    assert [(event.utterances, event.total) for event in told] == [(7, 18), (14, 18), (18, 18)]
    student = make_model(tmp_path / "student", seed=9, layers=1)
    listener = Listener()
    second = session.prepare(world.spec(data=ANY_RATE, student={"model": str(student)}), listener)
    assert second is not first
    assert [u.text for u in second.train.utterances] == [u.text for u in first.train.utterances]
    assert listener.events == []


def test_transcribing_can_be_stopped_and_goes_on_where_it_was(world: World) -> None:
    session = Session()
    spec = world.spec(data=ANY_RATE, evaluation={"batch_size": 7})
    with pytest.raises(StoppedError):
        session.prepare(spec, Listener(verdict="release", at_call=1))
    listener = Listener()
    session.prepare(spec, listener)
    assert [event.total for event in listener.events if isinstance(event, Labelled)] == [11, 11]


def test_a_run_on_the_teachers_labels_and_some_hours_in_buckets_reaches_its_budget(
    world: World, tmp_path: Path
) -> None:
    data: dict[str, Any] = {**ANY_RATE, "hours": 0.002, "bucket_window": 6}
    session, log = Session(), FolderLog(tmp_path)
    result = session.train(world.spec(data=data), MemoryCheckpoints(), Listener(), log)
    assert result.examples == 24
    train = session.prepare(world.spec(data=data)).train
    assert 7.2 <= train.scan.duration_s < 8.2
    assert train.scan.dropped == {"beyond data.hours (0.002)": 18 - len(train)}
    again = session.prepare(world.spec(data=data, seed=1)).train
    assert again is not train
    assert {u.name for u in again.utterances} != {u.name for u in train.utterances}


def test_teacher_and_student_hear_their_own_features_where_their_mel_bins_differ(world: World, tmp_path: Path) -> None:
    teacher = replace(world, model=make_model(tmp_path / "teacher", seed=4, mels=32))
    student = make_model(tmp_path / "student", seed=9, mels=20)
    spec = teacher.spec(data=ANY_RATE, student={"model": str(student)}, loss={"geo_weight": 1.0})
    material = load_material(spec)
    example = material.train[0]
    assert (example.features.shape, example.teacher_features.shape) == ((20, 100), (32, 100))
    alone = load_material(teacher.spec(data=ANY_RATE))
    assert torch.equal(example.teacher_features, alone.train[0].features)
    assert [u.text for u in material.train.utterances] == [u.text for u in alone.train.utterances]
    checked, checked_alone = (Session().preflight(each, Listener()) for each in (spec, teacher.spec(data=ANY_RATE)))
    assert any("every training process transcribes" in warning for warning in checked.warnings)
    assert checked.teacher_dev.wer == checked_alone.teacher_dev.wer
    assert checked.teacher_dev.cross_entropy == checked_alone.teacher_dev.cross_entropy
    result = Session().train(spec, MemoryCheckpoints(), Listener(), FolderLog(tmp_path / "run"))
    assert result.dev.kl is not None


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"which are not used; set data\.labels: teacher or"):
        DataSpec(train="", dev="", teacher_wer_threshold=0.2)
    assert DataSpec(train="", dev="", labels="teacher", teacher_wer_threshold=0.2).teacher_wer_threshold == 0.2
    with pytest.raises(ValueError, match=r"data.bucket_window \(4\) must be above optim.batch_size \(4\)"):
        make_world().spec(data={"bucket_window": 4})
    again = DataSpec.model_validate_json(DataSpec(train="", dev="").model_dump_json())
    assert again.labels == "transcript"
