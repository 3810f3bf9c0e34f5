"""Where the teacher lies: with the student, on the CPU, or in 8 bit."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.unit.tiny import FolderLog, Listener, MemoryCheckpoints, make_world
from trainer.errors import BadInputError
from trainer.loop import train
from trainer.material import load_material
from trainer.pretrained import load_pretrained
from trainer.runtime import Runtime
from trainer.teacher import OnlineTeacher, place_teacher

BF16 = Runtime(device=torch.device("cpu"), precision="bf16")


def test_a_teacher_in_8_bit_is_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_world().spec(teacher={"load_in_8bit": True})
    with pytest.raises(BadInputError, match=r"teacher\.load_in_8bit needs a GPU, and this run has none"):
        load_material(spec)
    with pytest.raises(ValidationError, match=r"teacher\.device is cpu; remove one of them"):
        make_world().spec(teacher={"load_in_8bit": True, "device": "cpu"})
    monkeypatch.setattr("trainer.teacher.is_bitsandbytes_available", lambda: False)
    gpu = Runtime(device=torch.device("cuda"), precision="fp16")
    with pytest.raises(BadInputError, match="install it, for example by the extra 8bit"):
        place_teacher(load_pretrained(spec.teacher.model), spec.teacher, gpu)


def test_a_teacher_beside_the_student_has_its_precision_and_the_loaded_weights_stay_as_they_are() -> None:
    spec = make_world().spec()
    pretrained = load_pretrained(spec.teacher.model)
    teacher = OnlineTeacher(place_teacher(pretrained, spec.teacher, BF16))
    assert teacher.model.dtype == torch.bfloat16
    assert pretrained.model.dtype == torch.float32
    assert teacher.runtime(BF16) == BF16


def test_a_teacher_on_the_cpu_of_a_run_on_a_gpu_computes_in_float32() -> None:
    """Without a GPU here: the placing, not the copying between devices."""
    spec = make_world().spec(teacher={"device": "cpu"})
    gpu = Runtime(device=torch.device("cuda"), precision="fp16")
    teacher = OnlineTeacher(place_teacher(load_pretrained(spec.teacher.model), spec.teacher, gpu))
    assert (teacher.model.device, teacher.model.dtype) == (torch.device("cpu"), torch.float32)
    assert teacher.runtime(gpu) == Runtime(device=torch.device("cpu"), precision="fp32")


def test_a_run_takes_a_teacher_on_the_cpu(tmp_path: Path) -> None:
    spec = make_world().spec(teacher={"device": "cpu"}, evaluation={"count": 1})
    train(spec, load_material(spec), MemoryCheckpoints(), Listener(), FolderLog(tmp_path))
