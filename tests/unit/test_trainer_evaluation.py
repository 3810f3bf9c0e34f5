"""Word error rate on hand-worked examples; decoding; what an evaluation leaves as it was."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from tests.unit.tiny import make_world
from trainer.errors import BadInputError
from trainer.evaluation import choose_utterances, decode_greedily, evaluate
from trainer.events import Metrics
from trainer.material import Material, load_material
from trainer.runtime import Runtime
from trainer.scoring import bootstrap_interval, count_errors, score
from trainer.students import Student, build_student


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material(make_world().spec())


@pytest.fixture
def student(material: Material) -> Student:
    return build_student(make_world().spec().student, material.source, seed=0)


def measure(student: Student, material: Material, *, batch_size: int = 4) -> Metrics:
    return evaluate(
        student,
        material.dev,
        vocabulary=material.vocabulary,
        teacher=material.teacher,
        spec=make_world().spec(evaluation={"batch_size": batch_size}).evaluation,
        runtime=Runtime(device=torch.device("cpu"), precision="fp32"),
        tick=lambda: None,
    )


def test_word_error_rate_of_a_hand_worked_example() -> None:
    result = score(
        ["the cat sat", "Hmm.", "Mister Smith paid twenty dollars", "the colour"],
        ["a cat sat down", "noise", "mr smith paid $20", "the color"],
        bootstrap_samples=200,
    )
    # One substitution and one insertion in the first; the others differ in spelling only, or have no words.
    assert (result.errors, result.words, result.utterances) == (2, 3 + 4 + 2, 3)
    assert result.wer == pytest.approx(2 / 9)
    assert result.interval[0] <= result.wer <= result.interval[1]


def test_errors_of_each_utterance_add_up_to_the_corpus() -> None:
    references = ["a b c", "a b", "a", "a b c d"]
    hypotheses = ["a x c", "", "a b c", "b c d e"]
    assert count_errors(references, hypotheses).tolist() == [1, 2, 2, 2]


def test_word_error_rate_can_exceed_one() -> None:
    assert score(["one lamp"], ["the red lamp is off now again"], bootstrap_samples=10).wer > 1.0


def test_references_without_words_alone_are_an_error() -> None:
    with pytest.raises(BadInputError, match="no transcript has any words after normalisation"):
        score(["Hmm.", "-"], ["a", "b"], bootstrap_samples=10)


def test_the_interval_contains_the_value_narrows_with_data_and_repeats() -> None:
    rng = np.random.default_rng(0)
    words, errors = rng.integers(3, 20, size=400), rng.integers(0, 3, size=400)
    small, large = (bootstrap_interval(errors[:n], words[:n], samples=500) for n in (40, 400))
    assert small[0] < errors[:40].sum() / words[:40].sum() < small[1]
    assert large[0] < errors.sum() / words.sum() < large[1]
    assert large[1] - large[0] < small[1] - small[0]
    assert bootstrap_interval(errors, words, samples=500) == large


def test_evaluation_leaves_mode_and_random_state_alone(student: Student, material: Material) -> None:
    for mode in (True, False):
        student.train(mode)
        modes = [module.training for module in student.modules()]
        state = torch.get_rng_state()
        metrics = measure(student, material)
        assert [module.training for module in student.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert metrics.interval[0] <= metrics.wer <= metrics.interval[1]
        assert metrics.rtf > 0


def test_evaluation_does_not_depend_on_how_utterances_are_batched(student: Student, material: Material) -> None:
    one, many = measure(student, material, batch_size=1), measure(student, material, batch_size=8)
    assert (one.errors, one.words, one.interval) == (many.errors, many.words, many.interval)
    assert one.cross_entropy == pytest.approx(many.cross_entropy, rel=1e-5)
    assert one.kl == pytest.approx(many.kl, rel=1e-3)


def test_the_teacher_has_no_divergence_from_itself(material: Material) -> None:
    teacher = Student(material.teacher.model, frozen_encoder=True, frozen_decoder=True)
    assert measure(teacher, material).kl == pytest.approx(0.0, abs=1e-6)


def test_greedy_decoding_equals_generate_and_keeps_to_each_limit(material: Material) -> None:
    student = Student(material.teacher.model, frozen_encoder=True, frozen_decoder=True)
    vocabulary, limits = material.vocabulary, [14, 3, 99, 1]
    with torch.no_grad():
        states = student.encode(3 * torch.randn(4, 20, 100, generator=torch.Generator().manual_seed(1)))
        rows = decode_greedily(student, states, vocabulary, limits)
        expected = GenerationMixin.generate(
            student.whisper,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=torch.tensor([vocabulary.prompt] * 4),
            generation_config=GenerationConfig(
                max_new_tokens=14, do_sample=False, eos_token_id=vocabulary.end, pad_token_id=vocabulary.end
            ),
        )
    for row, limit, sequence in zip(rows, limits, expected[:, len(vocabulary.prompt) :].tolist(), strict=True):
        whole = sequence[: sequence.index(vocabulary.end)] if vocabulary.end in sequence else sequence
        assert row == whole[:limit]
    assert max(map(len, rows)) > 1


def test_suppressed_tokens_are_not_decoded(material: Material) -> None:
    student = Student(material.teacher.model, frozen_encoder=True, frozen_decoder=True)
    states = torch.zeros(1, 50, 16)
    vocabulary = material.vocabulary
    with torch.no_grad():
        first = decode_greedily(student, states, vocabulary, [5])[0][0]
        changed = type(vocabulary)(**{**vars(vocabulary), "suppressed": (first,)})
        assert first not in decode_greedily(student, states, changed, [5])[0]
        changed = type(vocabulary)(**{**vars(vocabulary), "suppressed_first": (first,)})
        assert decode_greedily(student, states, changed, [5])[0][0] != first


def test_the_chosen_utterances_are_the_same_whatever_is_asked_before(material: Material) -> None:
    dataset = material.train
    three, six = choose_utterances(dataset, 3).indices, choose_utterances(dataset, 6).indices
    assert set(three) < set(six)
    assert len(choose_utterances(dataset, None).indices) == len(choose_utterances(dataset, 999).indices) == len(dataset)
    lengths = [dataset.utterances[index].header.num_samples for index in six]
    assert lengths == sorted(lengths, reverse=True)
