"""Which examples a step sees, what they look like as tensors, and what does not fit into the model."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import make_world
from trainer.batches import AudioDataset, build_dataset, collate
from trainer.config import DataSpec
from trainer.data import scan
from trainer.errors import BadInputError
from trainer.loader import load
from trainer.losses import IGNORED
from trainer.order import Order
from trainer.pretrained import Pretrained, load_pretrained
from trainer.vocabulary import Vocabulary, build_vocabulary

SPEC = DataSpec(train="", dev="", min_duration_s=0.1)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return load_pretrained(str(make_world().model))


@pytest.fixture(scope="module")
def vocabulary(pretrained: Pretrained) -> Vocabulary:
    return build_vocabulary(pretrained, None)


@pytest.fixture(scope="module")
def dataset(pretrained: Pretrained, vocabulary: Vocabulary) -> AudioDataset:
    return build_dataset(scan(str(make_world().train), SPEC), vocabulary, pretrained.log_mel, pretrained.log_mel)


LENGTHS = (3, 1, 4, 1, 5, 9, 2)


def take(seed: int, start: int, stop: int, window: int | None = None) -> list[int]:
    return Order(LENGTHS, seed=seed, window=window).take(start, stop)


@pytest.mark.parametrize("window", [None, 3, 100])
def test_each_epoch_sees_every_example_once_in_its_own_order(window: int | None) -> None:
    first, second = take(0, 0, 7, window), take(0, 7, 14, window)
    assert sorted(first) == sorted(second) == list(range(7))
    if window != 100:
        assert first != second
        assert take(1, 0, 7, window) != first


@pytest.mark.parametrize("window", [None, 3])
def test_the_stream_is_a_function_of_seed_and_examples_seen_alone(window: int | None) -> None:
    whole = take(3, 0, 40, window)
    for size in (1, 3, 16):
        pieces = list(Order(LENGTHS, seed=3, window=window).steps(0, 40, size))
        assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
        assert [index for piece in pieces for index in piece] == whole
        assert list(Order(LENGTHS, seed=3, window=window).steps(size, 40, size)) == pieces[1:]
    assert set(Counter(take(3, 0, 28, window)).values()) == {4}


def test_a_window_is_sorted_by_turns_upwards_and_downwards_and_holds_the_shuffles_examples() -> None:
    shuffled, sorted_ = take(5, 0, 7), take(5, 0, 7, 3)
    lengths = [LENGTHS[index] for index in sorted_]
    assert lengths[:3] == sorted(lengths[:3])
    assert lengths[3:6] == sorted(lengths[3:6], reverse=True)
    for first in (0, 3, 6):
        assert set(sorted_[first : first + 3]) == set(shuffled[first : first + 3])


def test_steps_end_exactly_at_the_budget_and_go_on_from_anywhere(dataset: AudioDataset) -> None:
    order = Order(dataset.token_counts, seed=5)
    whole = list(load(dataset, order.steps(0, 22, 8), processes=0))
    assert [len(step) for step in whole] == [8, 8, 6]
    rest = list(load(dataset, order.steps(8, 22, 8), processes=0))
    assert [e.token_ids for step in rest for e in step] == [e.token_ids for step in whole[1:] for e in step]


def test_labels_are_the_inputs_moved_on_by_one_without_prompt_and_padding(
    dataset: AudioDataset, vocabulary: Vocabulary
) -> None:
    examples = sorted((dataset[index] for index in range(6)), key=lambda e: len(e.token_ids))
    batch = collate(examples, vocabulary)
    start, plain = vocabulary.prompt
    for row, example in enumerate(examples):
        length = len(example.token_ids)
        assert batch.decoder_input_ids[row, : length + 2].tolist() == [start, plain, *example.token_ids]
        assert batch.labels[row, : length + 2].tolist() == [IGNORED, *example.token_ids, vocabulary.end]
        assert (batch.labels[row, length + 2 :] == IGNORED).all()
        assert (batch.decoder_input_ids[row, length + 2 :] == vocabulary.end).all()
        assert batch.frame_mask[row].sum() == example.num_frames
    assert torch.equal(batch.token_mask, batch.labels != IGNORED)
    assert batch.teacher_features is batch.features


def test_encoder_frames_are_counted_as_the_convolutions_make_them(pretrained: Pretrained) -> None:
    counts = [pretrained.log_mel.count_encoder_frames(samples) for samples in (1, 160, 161, 320, 321, 16_000, 99_999)]
    assert counts == [1, 1, 1, 1, 2, 50, 50]


def test_words_carry_their_leading_space_and_decode_to_the_text(vocabulary: Vocabulary) -> None:
    rows = vocabulary.encode(["lamp on", "zero"])
    assert [len(row) for row in rows] == [2, 1]
    assert vocabulary.decode([[*vocabulary.prompt, *row, vocabulary.end] for row in rows]) == ["lamp on", "zero"]


def test_what_does_not_fit_into_the_model_is_left_out_and_counted(
    pretrained: Pretrained, vocabulary: Vocabulary
) -> None:
    found = scan(str(make_world().train), SPEC)
    long_text = replace(found.utterances[0], text="oh " * 15)
    long_audio = replace(found.utterances[1], header=replace(found.utterances[1].header, num_frames=16_001))
    changed = replace(found, utterances=(long_text, long_audio, *found.utterances[2:]))
    dataset = build_dataset(changed, vocabulary, pretrained.log_mel, pretrained.log_mel)
    assert dataset.scan.dropped == {
        "transcript longer than the model's 14 tokens": 1,
        "longer than the model's window of 1 s": 1,
    }
    assert len(dataset) == len(found.utterances) - 2
    only = replace(found, utterances=(long_audio,))
    with pytest.raises(BadInputError, match="is left after filtering"):
        build_dataset(only, vocabulary, pretrained.log_mel, pretrained.log_mel)


def test_the_fingerprint_of_data_follows_its_content_not_its_place(
    dataset: AudioDataset, pretrained: Pretrained, vocabulary: Vocabulary
) -> None:
    again = build_dataset(scan(str(make_world().train), SPEC), vocabulary, pretrained.log_mel, pretrained.log_mel)
    other = build_dataset(scan(str(make_world().dev), SPEC), vocabulary, pretrained.log_mel, pretrained.log_mel)
    assert again.fingerprint() == dataset.fingerprint() != other.fingerprint()
