"""The shipped teacher: small, loadable as it is, and able to understand voices that it never heard."""

from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from demo.corpus import speak_line
from demo.script import FOR_STUDENT, VOCABULARY, write_script
from demo.speech import Speaker

TEACHER = Path(__file__).parents[2] / "demo" / "teacher"


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(TEACHER).eval()


@pytest.fixture(scope="module")
def tokenizer() -> WhisperTokenizer:
    return WhisperTokenizer.from_pretrained(TEACHER)


def test_it_is_small_enough_to_be_committed() -> None:
    assert sum(path.stat().st_size for path in TEACHER.iterdir()) < 4_000_000


def test_it_computes_in_float32_unless_told_otherwise(model: WhisperForConditionalGeneration) -> None:
    assert model.dtype == torch.float32


def test_every_word_is_one_token_at_the_start_and_within_a_sentence(tokenizer: WhisperTokenizer) -> None:
    for word in VOCABULARY:
        (first, second) = tokenizer(f"{word} {word}", add_special_tokens=False).input_ids
        assert first == second
        assert tokenizer(f" {word}", add_special_tokens=False).input_ids == [first]


def test_it_understands_voices_that_it_never_heard(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer
) -> None:
    extractor = WhisperFeatureExtractor.from_pretrained(TEACHER)
    # Another seed than the corpus: these sentences were in no file when the teacher was trained and measured.
    spec = replace(FOR_STUDENT, seed=99, train_speakers=0, dev_speakers=0, utterances_per_speaker=2)
    lines, speaker = list(write_script(spec)), Speaker()
    waves = [speak_line(speaker, line).samples.astype(np.float32) / 2**15 for line in lines]
    features = extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        ids = model.generate(input_features=features, max_length=32, attention_mask=torch.ones(len(lines), 200))
    heard = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert jiwer.wer([line.words for line in lines], heard) < 0.15
