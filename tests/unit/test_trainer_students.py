"""What a student is made of, what of it learns, and which models are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.tiny import WORDS, make_model, make_world
from trainer.errors import BadInputError
from trainer.pretrained import Pretrained, load_pretrained
from trainer.student_spec import EncoderSpec, LayersSpec, WhisperStudentSpec
from trainer.students import (
    RiemannianProjector,
    Student,
    build_hidden_projector,
    build_projector,
    build_student,
    choose_layers,
)
from trainer.vocabulary import build_vocabulary, require_same_vocabulary


@pytest.fixture(scope="module")
def source() -> Pretrained:
    return load_pretrained(str(make_world().model))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_world().model, tmp_path / "model"))


def weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.whisper.state_dict().items()}


@pytest.mark.parametrize(
    ("keep", "available", "expected"),
    [
        (4, 12, (0, 3, 7, 11)),
        (2, 12, (0, 11)),
        (1, 12, (11,)),
        (12, 12, tuple(range(12))),
        ("all", 3, (0, 1, 2)),
        ((1, 1, 0), 2, (1, 1, 0)),
    ],
)
def test_layers_are_taken_at_maximally_spaced_depths(
    keep: int | str | tuple[int, ...], available: int, expected: tuple[int, ...]
) -> None:
    assert choose_layers(LayersSpec(keep=keep), available, "student.decoder") == expected


@pytest.mark.parametrize("keep", [13, (0, 12), ()])
def test_layers_that_are_not_there_are_refused(keep: int | tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"student\.decoder keeps"):
        choose_layers(LayersSpec(keep=keep), 12, "student.decoder")


def test_a_student_that_keeps_everything_says_what_its_source_says(source: Pretrained) -> None:
    student = build_student(WhisperStudentSpec(), source, seed=0)
    features, ids = torch.randn(2, 20, 100), torch.tensor([[1, 2, 3], [4, 5, 6]])
    outputs = student.decode(student.encode(features), ids)
    expected = source.model(input_features=features, decoder_input_ids=ids)
    assert torch.equal(outputs.head(outputs.decoder_states), expected.logits)
    assert torch.equal(outputs.encoder_states, expected.encoder_last_hidden_state)


def test_kept_layers_are_copies_and_leave_the_source_alone(source: Pretrained) -> None:
    spec = WhisperStudentSpec(encoder=EncoderSpec(frozen=False, keep=1), decoder=LayersSpec(keep=(1, 0)))
    student = build_student(spec, source, seed=0)
    before = source.model.model.decoder.layers[1].fc1.weight.clone()
    mine = student.whisper.model.decoder.layers[0].fc1.weight
    assert torch.equal(mine, before)
    assert torch.equal(
        student.whisper.model.encoder.layers[0].fc1.weight, source.model.model.encoder.layers[1].fc1.weight
    )
    with torch.no_grad():
        mine.zero_()
    assert torch.equal(source.model.model.decoder.layers[1].fc1.weight, before)


def test_random_layers_and_front_end_follow_the_seed_and_nothing_that_ran_before(source: Pretrained) -> None:
    spec = WhisperStudentSpec(encoder=EncoderSpec(frozen=False, keep=2, init="random"))
    torch.manual_seed(1)
    first = build_student(spec, source, seed=7)
    torch.manual_seed(2)
    torch.randn(5)
    state = torch.get_rng_state()
    again = build_student(spec, source, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    other = build_student(spec, source, seed=8)
    copied = source.model.state_dict()
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(again)[name])
        is_random = tensor.std() > 0 and ("encoder.layers" in name or "conv" in name) and tensor.ndim > 1
        assert torch.equal(tensor, weights(other)[name]) == (not is_random), name
        if "decoder" in name or "embed_positions" in name:
            assert torch.equal(tensor, copied[name]), name


def test_projectors_follow_the_seed_and_end_on_the_unit_sphere() -> None:
    projector = build_projector(16, 24, seed=3)
    assert torch.equal(projector.linear.weight, build_projector(16, 24, seed=3).linear.weight)
    assert isinstance(projector, RiemannianProjector)
    torch.testing.assert_close(projector(torch.randn(2, 5, 16)).norm(dim=-1), torch.ones(2, 5))
    plain = build_hidden_projector(16, 24, seed=3)
    assert torch.equal(plain.weight, build_hidden_projector(16, 24, seed=3).weight)
    assert not torch.equal(plain.weight, projector.linear.weight)


def test_dropout_reaches_every_module_and_the_other_noises_are_off(source: Pretrained) -> None:
    student = build_student(WhisperStudentSpec(dropout=0.25, encoder=EncoderSpec(frozen=False)), source, seed=0)
    rates = {module.dropout for name, module in student.named_modules() if name.endswith(("coder", ".0", ".1"))}
    assert rates == {0.25}
    assert student.whisper.model.encoder.layerdrop == student.whisper.model.decoder.layerdrop == 0.0


def test_a_frozen_encoder_stays_in_eval_mode_and_gets_no_gradient(source: Pretrained) -> None:
    student = build_student(WhisperStudentSpec(dropout=0.5), source, seed=0).train()
    assert student.training
    assert not any(module.training for module in student.whisper.model.encoder.modules())
    assert all(module.training for module in student.whisper.model.decoder.modules())
    states = student.encode(torch.randn(2, 20, 100))
    assert not states.requires_grad
    outputs = student.decode(states, torch.tensor([[1, 2], [3, 4]]))
    outputs.head(outputs.decoder_states).sum().backward()
    assert all(p.grad is None for p in student.whisper.model.encoder.parameters())
    assert all(p.grad is not None for p in student.trainable().values())
    assert all(".decoder." in name for name in student.trainable())
    assert student.count_trainable() < student.count_parameters()


def test_parameters_are_counted_once_where_they_are_tied(source: Pretrained) -> None:
    student = build_student(WhisperStudentSpec(), source, seed=0)
    assert student.count_parameters() == sum(p.numel() for p in source.model.parameters())
    assert student.whisper.proj_out.weight is student.whisper.model.decoder.embed_tokens.weight


def edit(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_each_broken_model_directory_is_refused_with_its_remedy(folder: Path, tmp_path: Path) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(BadInputError) as caught:
            load_pretrained(name)
        return str(caught.value)

    def fresh() -> None:
        shutil.rmtree(folder)
        shutil.copytree(make_world().model, folder)

    assert "does not exist; correct teacher.model" in refusal(str(tmp_path / "nowhere"))
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1000])
    assert "cannot be loaded" in refusal(str(folder))
    assert "copy or download it again" in refusal(str(folder))
    weights_file.unlink()
    assert "has no weights (model.safetensors)" in refusal(str(folder))
    fresh()
    edit(folder / "config.json", lambda config: config.update(model_type="bert"))
    assert "is a bert, not a Whisper" in refusal(str(folder))
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(str(folder))
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(str(folder))
    fresh()
    edit(folder / "config.json", lambda config: config.update(decoder_layers=3))
    assert "lack" in refusal(str(folder))
    fresh()
    edit(folder / "preprocessor_config.json", lambda config: config.update(chunk_length=2))
    assert "makes 20 by 200 features but its encoder takes 20 by 100" in refusal(str(folder))
    fresh()
    (folder / "preprocessor_config.json").unlink()
    assert "cannot be loaded" in refusal(str(folder))


def test_a_student_with_another_vocabulary_is_refused(source: Pretrained, tmp_path: Path) -> None:
    same = load_pretrained(str(make_model(tmp_path / "same", seed=5)))
    require_same_vocabulary(source, same)
    other = load_pretrained(str(make_model(tmp_path / "other", words=tuple(word[::-1] for word in WORDS))))
    assert len(other.tokenizer) == pytest.approx(len(source.tokenizer), abs=20)
    with pytest.raises(BadInputError, match=r"differ in \d+ tokens, so the teacher's probabilities mean nothing"):
        require_same_vocabulary(source, other)


def test_language_belongs_to_multilingual_models_alone(folder: Path) -> None:
    with pytest.raises(BadInputError, match=r"takes no language; remove teacher\.language"):
        build_vocabulary(load_pretrained(str(folder)), "en")
    extra = {"is_multilingual": True, "lang_to_id": {"<|en|>": 7}, "task_to_id": {"transcribe": 9}}
    edit(folder / "generation_config.json", lambda config: config.update(extra))
    multilingual = load_pretrained(str(folder))
    start, plain = build_vocabulary(load_pretrained(str(make_world().model)), None).prompt
    assert build_vocabulary(multilingual, "en").prompt == (start, 7, 9, plain)
    with pytest.raises(BadInputError, match=r"is multilingual; set teacher\.language"):
        build_vocabulary(multilingual, None)
    with pytest.raises(BadInputError, match="knows no language 'xx'"):
        build_vocabulary(multilingual, "xx")
