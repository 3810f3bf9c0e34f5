"""LoRA: which layers get an adapter, what learns then, what is kept of it, and what is refused."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.unit.tiny import FolderLog, Listener, MemoryCheckpoints, make_world
from trainer.adapters import add_adapters, require_trainable
from trainer.errors import BadInputError, StoppedError
from trainer.loop import train
from trainer.material import Material, load_material
from trainer.progress import check_gradients
from trainer.runtime import Runtime
from trainer.state import TrainState, start_state
from trainer.step import take_step
from trainer.student_spec import LoraSpec, WhisperStudentSpec
from trainer.students import Student, build_student

ATTENTIONS = ("self_attn", "encoder_attn")
IN_LAYER = {
    "qv": [f"{each}.{name}_proj" for each in ATTENTIONS for name in "qv"],
    "qkv": [f"{each}.{name}_proj" for each in ATTENTIONS for name in "qkv"],
    "qkv_fc2": [*(f"{each}.{name}_proj" for each in ATTENTIONS for name in "qkv"), "fc2"],
    "all_attention_mlp": [
        *(f"{each}.{name}_proj" for each in ATTENTIONS for name in ("q", "k", "v", "out")),
        "fc1",
        "fc2",
    ],
}


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material(make_world().spec())


def student_of(material: Material, **lora: Any) -> Student:
    return build_student(WhisperStudentSpec.model_validate({"lora": lora}), material.source, seed=0)


def adapters(*layers: str) -> set[str]:
    return {f"whisper.model.{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"}


def start(material: Material, precision: str = "fp32", **parts: Any) -> tuple[Any, Material, TrainState]:
    spec = make_world().spec(**{"student": {"lora": {}, "decoder": {"keep": 2}}, **parts})
    runtime = Runtime(device=torch.device("cpu"), precision=precision)
    placed = type(material)(**{**vars(material), "runtime": runtime})
    return spec, placed, start_state(spec, placed)


@pytest.mark.parametrize("preset", IN_LAYER)
def test_a_preset_trains_its_layers_of_the_decoder_and_nothing_else(material: Material, preset: str) -> None:
    student = student_of(material, preset=preset)
    expected = adapters(*(f"decoder.layers.{index}.{name}" for index in (0, 1) for name in IN_LAYER[preset]))
    assert set(student.trainable()) == expected
    assert (student.frozen_encoder, student.frozen_decoder) == (True, False)


def test_a_regular_expression_trains_the_layers_whose_whole_names_it_matches(material: Material) -> None:
    student = student_of(material, targets=r"model\.decoder\.layers\.1\.(fc1|encoder_attn\.q_proj)")
    assert set(student.trainable()) == adapters("decoder.layers.1.fc1", "decoder.layers.1.encoder_attn.q_proj")


def test_the_encoder_gets_the_same_preset_on_request_and_then_has_a_graph(material: Material) -> None:
    student = student_of(material, preset="qkv_fc2", encoder=True).train()
    in_encoder = [f"encoder.layers.{index}.{name}" for index in (0, 1) for name in IN_LAYER["qkv_fc2"]]
    in_decoder = [name.replace("encoder.layers", "decoder.layers") for name in in_encoder]
    expected = adapters(*(name for name in in_encoder if "encoder_attn" not in name), *in_decoder)
    assert set(student.trainable()) == expected
    assert student.encode(torch.randn(1, 20, 100)).requires_grad
    assert student.whisper.model.encoder.training


def test_a_free_encoder_learns_beside_the_decoders_adapters(material: Material) -> None:
    spec = WhisperStudentSpec.model_validate({"lora": {}, "encoder": {"frozen": False}})
    names = set(build_student(spec, material.source, seed=0).trainable())
    assert "whisper.model.encoder.conv1.weight" in names
    assert "whisper.model.encoder.embed_positions.weight" not in names
    assert {name for name in names if ".decoder." in name} == set(student_of(material).trainable())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("qv", 196_608), ("qkv", 294_912), ("qkv_fc2", 417_792), ("all_attention_mlp", 638_976)],
)
def test_whisper_small_cut_to_four_layers_has_as_many_trainable_weights_as_by_hand(preset: str, expected: int) -> None:
    """By hand, at rank 8 and width 768: 8 · (in + out) a layer, of 768 + 768 in attention, 768 + 3072 in the MLP."""
    config = WhisperConfig(
        vocab_size=100, d_model=768, encoder_layers=1, decoder_layers=4, encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        encoder_attention_heads=12, decoder_attention_heads=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3,
    )  # fmt: skip
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration(config)
    add_adapters(whisper, LoraSpec(preset=preset), dropout=0.0)
    assert sum(p.numel() for p in whisper.parameters() if p.requires_grad) == expected


def test_adapters_change_nothing_at_first_and_follow_the_seed(material: Material) -> None:
    features, ids = torch.randn(2, 20, 100), torch.tensor([[1, 2, 3], [4, 5, 6]])
    student = student_of(material)
    expected = material.source.model(input_features=features, decoder_input_ids=ids).logits
    outputs = student.decode(student.encode(features), ids)
    torch.testing.assert_close(outputs.head(outputs.decoder_states), expected)
    torch.manual_seed(9)
    again = student_of(material).trainable()
    assert all(torch.equal(parameter, again[name]) for name, parameter in student.trainable().items())


def test_rank_alpha_and_dropout_reach_the_adapters(material: Material) -> None:
    def facts(student: dict[str, Any]) -> tuple[int, float, float, float]:
        whisper = build_student(WhisperStudentSpec.model_validate(student), material.source, seed=0).whisper
        layer: Any = whisper.model.decoder.layers[0].self_attn.q_proj
        rank = layer.lora_A["default"].out_features
        return rank, layer.scaling["default"], layer.lora_dropout["default"].p, whisper.model.decoder.layers[0].dropout

    assert facts({"lora": {"rank": 4, "alpha": 6.0}, "dropout": 0.3}) == (4, 1.5, 0.3, 0.3)
    assert facts({"lora": {"dropout": 0.2}, "dropout": 0.3}) == (8, 2.0, 0.2, 0.3)


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"targets": r"q_proj|v_proj"}, "matches no layer of the decoder; a whole name must match, such as model.deco"),
        (
            {"targets": r".*q_proj"},
            r"2 layers of the encoder too, such as model.encoder.layers.0.self_attn.q_proj; beg",
        ),
        ({"targets": r".*(proj_out|q_proj)"}, "matches proj_out, which is no linear layer of an encoder or decoder"),
        ({"targets": r".*embed_tokens"}, "matches model.decoder.embed_tokens, which is no linear layer"),
        ({"targets": r".*decoder.*self_attn"}, "matches model.decoder.layers.0.self_attn, which is no linear layer"),
        ({"targets": ".*"}, "matches the whole model, which is no linear layer"),
        ({"targets": r"model\.decoder.*q_proj", "encoder": True}, "matches no layer of the encoder"),
        ({"targets": r"model\.encoder.*q_proj", "encoder": True}, "matches no layer of the decoder"),
    ],
)
def test_targets_that_match_nothing_or_too_much_are_refused(
    material: Material, lora: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInputError, match=r"^student\.lora\.targets") as caught:
        student_of(material, **lora)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (
            {"lora": {}, "decoder": {"frozen": False}},
            "remove student.decoder.frozen, or student.lora to train the whole",
        ),
        ({"lora": {}, "decoder": {"init": "random"}}, "student.decoder.init must be copy"),
        ({"lora": {"encoder": True}, "encoder": {"frozen": False}}, "remove it, or student.encoder.frozen: false"),
        ({"lora": {"preset": "qv", "targets": "x"}}, "either preset or targets"),
        ({"lora": {"preset": None}}, "either preset or targets"),
        ({"lora": {"targets": "("}}, "is no regular expression"),
        ({"decoder": {"frozen": True}}, "nothing would learn"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(student: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WhisperStudentSpec.model_validate(student)
    assert sentence in str(caught.value)


def test_the_resolved_configuration_says_that_the_decoder_is_frozen_and_reads_back_equal() -> None:
    spec = WhisperStudentSpec.model_validate({"lora": {"targets": "x"}, "decoder": {"keep": 4}})
    assert spec.decoder.frozen
    assert WhisperStudentSpec.model_validate(spec.model_dump()) == spec
    assert WhisperStudentSpec(lora=LoraSpec(), decoder=WhisperStudentSpec().decoder).decoder.frozen


def test_a_tensor_that_learns_but_should_not_is_found(material: Material) -> None:
    spec = WhisperStudentSpec(lora=LoraSpec())
    student = build_student(spec, material.source, seed=0)
    targets = tuple(name.removeprefix("whisper.").split(".lora_")[0] for name in student.trainable())
    require_trainable(student, spec, targets)
    student.whisper.model.decoder.layer_norm.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"1 tensors .* such as whisper\.model\.decoder\.layer_norm\.weight"):
        require_trainable(student, spec, targets)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_adapter_has_a_gradient_after_two_steps_and_is_kept_in_float32(
    material: Material, precision: str
) -> None:
    spec, placed, state = start(material, precision, optim={"warmup_fraction": 0.0, "examples": 400})
    examples = [material.train[index] for index in range(4)]
    while state.scheduled_examples < 8:  # fp16 may skip some
        assert not state.has_proved_gradients
        take_step(spec, placed, state, examples)
        check_gradients(spec, placed.runtime, state)
    assert state.has_proved_gradients
    assert {parameter.dtype for parameter in state.student.trainable().values()} == {torch.float32}
    assert state.sums.isfinite().all()


def test_an_adapter_without_a_gradient_ends_the_run_with_a_sentence(material: Material) -> None:
    spec, placed, state = start(material)
    name, parameter = next(iter(state.student.trainable().items()))
    parameter.register_hook(torch.zeros_like)
    take_step(spec, placed, state, [material.train[index] for index in range(4)])
    check_gradients(spec, placed.runtime, state)
    take_step(spec, placed, state, [material.train[index] for index in range(4)])
    with pytest.raises(BadInputError, match=f"adapter tensor {name} has received no gradient"):
        check_gradients(spec, placed.runtime, state)


@pytest.mark.parametrize("lora", [None, {}, {"encoder": True, "preset": "all_attention_mlp"}])
def test_activation_checkpointing_changes_no_gradient_and_revives_no_encoder(
    material: Material, lora: dict[str, Any] | None
) -> None:
    student = {"lora": lora, "dropout": 0.3}
    examples = [material.train[index] for index in range(4)]

    def first_step(checkpointed: bool) -> TrainState:
        spec, placed, state = start(material, student=student, runtime={"activation_checkpointing": checkpointed})
        take_step(spec, placed, state, examples)
        return state

    plain, checkpointed = first_step(False), first_step(True)
    side = checkpointed.student.whisper.model.decoder
    assert all(layer.gradient_checkpointing for layer in side.layers)
    for (name, expected), other in zip(
        plain.student.trainable().items(), checkpointed.student.trainable().values(), strict=True
    ):
        assert expected.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, expected.grad)
    states = checkpointed.student.encode(torch.randn(1, 20, 100))
    assert states.requires_grad == (lora is not None and "encoder" in lora)
    assert not side.embed_tokens(torch.tensor([[1]])).requires_grad or lora is None


def test_a_run_with_adapters_keeps_them_alone_and_resumes_bitwise(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec(student={"lora": {"preset": "qkv_fc2"}, "dropout": 0.3}, optim={"batch_size": 4})

    def run(checkpoints: MemoryCheckpoints, listener: Listener) -> dict[str, Any]:
        train(spec, material, checkpoints, listener, FolderLog(tmp_path))
        return torch.load(io.BytesIO(checkpoints.saved[-1][1]), weights_only=True)["student"]

    whole, interrupted = MemoryCheckpoints(), MemoryCheckpoints()
    expected = run(whole, Listener())
    with pytest.raises(StoppedError):
        run(interrupted, Listener(verdict="release", at_call=4))
    resumed = run(interrupted, Listener())
    assert expected.keys() == resumed.keys()
    assert all(".lora_" in name for name in expected)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    assert any(tensor.any() for name, tensor in expected.items() if "lora_B" in name)
