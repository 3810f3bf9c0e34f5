"""Preflight, and what is kept loaded between runs."""

import shutil
from pathlib import Path

import pytest

from tests.unit.tiny import FolderLog, Listener, MemoryCheckpoints, make_model, make_world
from trainer.errors import BadInputError, StoppedError
from trainer.session import Session


def test_preflight_tells_what_it_found() -> None:
    world = make_world()
    result = Session().preflight(world.spec(data={"test": str(world.dev)}), Listener())
    assert (result.train.utterances, result.dev.utterances) == (18, 8)
    assert result.test == result.dev
    assert result.teacher_test is not None
    assert result.teacher_test.wer == result.teacher_dev.wer
    assert result.teacher_dev.kl is None
    assert 0 < result.trainable_parameters < result.student_parameters
    assert (result.device, result.precision) == ("cpu", "fp32")
    assert len(result.warnings) == 1
    assert "the teacher" in result.warnings[0]
    assert "little can be learnt from it" in result.warnings[0]


def test_preflight_warns_of_what_is_left_out_and_of_shared_utterances() -> None:
    world = make_world()
    spec = world.spec(data={"dev": str(world.train), "min_duration_s": 0.8})
    warnings = Session().preflight(spec, Listener()).warnings
    assert any("left out" in warning and "shorter than 0.8 s" in warning for warning in warnings)
    assert any("are also in" in warning for warning in warnings)


def test_preflight_refuses_a_broken_file_and_honours_a_verdict(tmp_path: Path) -> None:
    world = make_world()
    corpus = Path(shutil.copytree(world.train, tmp_path / "train"))
    with pytest.raises(StoppedError):
        Session().preflight(world.spec(), Listener(verdict="release", at_call=1))
    broken = corpus / "2" / "1" / "2-1-0003.flac"
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(BadInputError, match=r"2-1-0003\.flac is damaged or breaks off"):
        Session().preflight(world.spec(data={"train": str(corpus)}), Listener())


def test_a_session_loads_again_only_for_other_data_or_models(tmp_path: Path) -> None:
    world, session = make_world(), Session()
    first = session.prepare(world.spec())
    assert session.prepare(world.spec(optim={"lr": 1e-2}, student={"dropout": 0.4}, seed=3)) is first
    student = make_model(tmp_path / "student", seed=9, layers=1)
    second = session.prepare(world.spec(student={"model": str(student)}))
    assert second is not first
    assert second.source.name == str(student)
    assert second.teacher_width == 16


def test_a_student_of_another_model_is_trained_and_tested_once(tmp_path: Path) -> None:
    world = make_world()
    student = make_model(tmp_path / "student", seed=9, layers=1)
    spec = world.spec(data={"test": str(world.dev)}, student={"model": str(student)})
    listener = Listener()
    result = Session().train(spec, MemoryCheckpoints(), listener, FolderLog(tmp_path / "run"))
    assert result.test is not None
    assert result.test.wer == result.dev.wer
    assert len(listener.evaluations()) == 3
