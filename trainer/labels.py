"""The teacher's own transcripts as training labels, kept where they agree with the given ones (distil-whisper)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import WhisperForConditionalGeneration

from trainer.batches import AudioDataset, collate, reason_against_tokens
from trainer.config import TrialSpec
from trainer.evaluation import decode_greedily, limit_tokens
from trainer.loader import load
from trainer.runtime import Runtime
from trainer.scoring import rate_each
from trainer.students import Student
from trainer.vocabulary import Vocabulary

Tell = Callable[[int, int], None]
"""Hears how many utterances are transcribed, and of how many; called after every batch."""


Transcripts = dict[str, dict[str, str]]
"""What teachers said, for as long as the process lives: by teacher and settings, then by audio file."""


def label_by_teacher(
    dataset: AudioDataset,
    teacher: WhisperForConditionalGeneration,
    spec: TrialSpec,
    *,
    vocabulary: Vocabulary,
    runtime: Runtime,
    transcripts: Transcripts,
    tell: Tell,
) -> AudioDataset:
    """Return a data set with the teacher's transcripts, without those too far from the given ones, counted.

    The teacher's casing and punctuation stay: they are what it is sure of, and ``data.text`` is for the transcripts
    that the data gives. Those are compared with through Whisper's normaliser, to which casing means nothing.

    Raises:
        BadInputError: A file cannot be decoded, or nothing is left.
    """
    settings = f"{spec.teacher.model_dump_json()} {spec.evaluation.tokens_per_second} {runtime}"
    heard = transcripts.setdefault(settings, {})
    unheard = tuple(i for i, u in enumerate(dataset.utterances) if str(u.audio) not in heard)
    if unheard:
        _transcribe(
            dataset,
            unheard,
            teacher=teacher,
            spec=spec,
            vocabulary=vocabulary,
            runtime=runtime,
            heard=heard,
            tell=tell,
        )
    utterances = dataset.utterances
    texts = [heard[str(utterance.audio)] for utterance in utterances]
    rows = vocabulary.encode(texts)
    threshold = spec.data.teacher_wer_threshold
    reasons = [
        _reason_against(text, rate, threshold) or reason_against_tokens(row, vocabulary)
        for text, rate, row in zip(
            texts, rate_each([utterance.text for utterance in utterances], texts), rows, strict=True
        )
    ]
    relabelled = tuple(replace(utterance, text=text) for utterance, text in zip(utterances, texts, strict=True))
    kept_rows = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return dataset.relabel(replace(dataset.scan, utterances=relabelled).keep(reasons), kept_rows)


@torch.no_grad()
def _transcribe(
    dataset: AudioDataset,
    indices: tuple[int, ...],
    *,
    teacher: WhisperForConditionalGeneration,
    spec: TrialSpec,
    vocabulary: Vocabulary,
    runtime: Runtime,
    heard: dict[str, str],
    tell: Tell,
) -> None:
    """Decode greedily, exactly as an evaluation of the teacher does, and note the texts in ``heard``."""
    listener = Student(teacher, frozen_encoder=True, frozen_decoder=True)
    size, utterances = spec.evaluation.batch_size, dataset.utterances
    ordered = sorted(indices, key=lambda index: (-utterances[index].header.num_samples, index))
    parts = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    done = 0
    for part, examples in zip(parts, load(dataset, parts, processes=spec.runtime.loader_processes), strict=True):
        batch = collate(examples, vocabulary, pin_memory=runtime.is_cuda).to(runtime.device)
        with runtime.autocast():
            states = listener.encode(batch.teacher_features)
            limits = limit_tokens([utterances[index] for index in part], spec.evaluation)
            rows = decode_greedily(listener, states, vocabulary, limits)
        for index, text in zip(part, vocabulary.decode(rows), strict=True):
            heard[str(utterances[index].audio)] = text
        done += len(part)
        tell(done, len(ordered))


def _reason_against(text: str, rate: float | None, threshold: float) -> str | None:
    if not text:
        return "nothing heard by the teacher"
    if rate is None:
        return "transcript without words to judge the teacher's by"
    if rate > threshold:
        return f"teacher's transcript with a word error rate above {threshold:g}"
    return None
