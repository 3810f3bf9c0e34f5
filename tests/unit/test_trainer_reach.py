"""Which weights each term of the loss reaches, as a backward pass measures it."""

from typing import Any

import pytest
import torch

from tests.unit.tiny import Listener, make_model, make_world
from trainer.errors import BadInputError
from trainer.material import Material, load_material
from trainer.reach import measure_reach, with_every_term
from trainer.session import Session
from trainer.students import Student


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material(make_world().spec())


def tensors(material: Material, student: dict[str, Any], **loss: Any) -> tuple[dict[str, int], int]:
    spec = make_world().spec(student=student, loss=loss)
    reach = measure_reach(spec, material)
    return {each.term: each.tensors for each in reach.terms}, reach.trainable_tensors


@pytest.mark.parametrize("lora", [None, {}])
def test_under_a_frozen_encoder_the_geodesic_term_on_its_states_trains_only_the_projector(
    material: Material, lora: dict[str, Any] | None
) -> None:
    """The default recipe of the notes."""
    reached, total = tensors(material, {"lora": lora}, geo_states="encoder")
    assert reached == {"cross_entropy": total, "kl": total, "geodesic": 0, "hidden": 0}


def test_on_decoder_states_it_reaches_the_adapters(material: Material) -> None:
    reached, total = tensors(material, {"lora": {}}, geo_states="decoder")
    assert reached == {"cross_entropy": total, "kl": total, "geodesic": total, "hidden": 0}


def test_on_encoder_states_it_reaches_an_encoder_that_learns_and_no_decoder(material: Material) -> None:
    for student in ({"lora": {"encoder": True}}, {"encoder": {"frozen": False}}):
        reached, total = tensors(material, student, geo_states="encoder")
        assert 0 < reached["geodesic"] < total
        assert reached["kl"] == total


def test_a_term_is_measured_though_its_weight_is_0_and_though_the_student_is_its_teacher() -> None:
    spec = make_world().spec(student={"encoder": {"keep": "all"}, "decoder": {"keep": "all"}}, loss={"kl_weight": 0})
    reached = measure_reach(spec, load_material(spec)).terms
    assert [(each.term, each.tensors > 0) for each in reached] == [
        ("cross_entropy", True),
        ("kl", True),
        ("geodesic", False),
        ("hidden", False),
    ]
    assert (with_every_term(spec.loss).kl_weight, with_every_term(spec.loss).geo_weight) == (1.0, 1.0)


def test_measuring_leaves_the_random_state_alone_and_gives_the_same_twice(material: Material) -> None:
    spec = make_world().spec(student={"lora": {}})
    state = torch.get_rng_state()
    assert measure_reach(spec, material) == measure_reach(spec, material)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_that_no_term_reaches_is_refused(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Student.decode
    monkeypatch.setattr(Student, "decode", lambda self, states, ids: decode(self, states.detach(), ids))
    spec = make_world().spec(student={"encoder": {"frozen": False}}, loss={"geo_states": "decoder"})
    with pytest.raises(BadInputError, match=r"no term of the loss reaches \d+ of the student's \d+ trainable tensors"):
        measure_reach(spec, material)


def test_dropout_is_measured(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_world().spec(student={"dropout": 0.0})
    assert measure_reach(spec, material).has_dropout
    monkeypatch.setattr(Student, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
    assert not measure_reach(spec, material).has_dropout


def test_preflight_reports_it_and_refuses_adapters_that_match_nothing(tmp_path: Any) -> None:
    session = Session()
    result = session.preflight(make_world().spec(student={"lora": {"rank": 2}}), Listener())
    assert [each.term for each in result.reach] == ["cross_entropy", "kl", "geodesic", "hidden"]
    assert (result.trainable_tensors, result.trainable_parameters) == (8, 8 * 2 * 16)
    assert result.has_dropout and not result.dead_knobs
    with pytest.raises(BadInputError, match="matches no layer of the decoder"):
        session.preflight(make_world().spec(student={"lora": {"targets": "q_proj"}}), Listener())
    wide = make_model(tmp_path / "wide", seed=3)
    assert session.preflight(make_world().spec(student={"model": str(wide)}), Listener()).reach[2].tensors == 0
