"""Read a spoken corpus back: features, transcripts, and what is said in each frame."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from demo.sound import SAMPLE_RATE_HZ
from demo.tiny_whisper import FRAMES_PER_SECOND, WINDOW_S

SILENCE = "_"


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording: where it lies, what was said, and (training only) when."""

    audio_path: Path
    text: str
    phones: tuple[tuple[str, float], ...] = ()
    """Each phone and the second at which it starts; ends with the silence after the last one."""
    words: tuple[tuple[str, float], ...] = ()


def read_split(folder: Path) -> list[Utterance]:
    """The utterances of one split, in the order of their names."""
    utterances = []
    for transcript_path in sorted(folder.rglob("*.trans.txt")):
        alignment_path = transcript_path.with_name(transcript_path.name.replace(".trans.txt", ".alignment.json"))
        times = json.loads(alignment_path.read_text(encoding="utf-8")) if alignment_path.exists() else {}
        for line in transcript_path.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", maxsplit=1)
            found = times.get(name, {"phones": (), "words": ()})
            utterances.append(
                Utterance(
                    audio_path=transcript_path.with_name(f"{name}.flac"),
                    text=text,
                    phones=tuple((_without_stress(label), start_s) for label, start_s in found["phones"]),
                    words=tuple((label, start_s) for label, start_s in found["words"]),
                )
            )
    return utterances


def load_features(utterances: Sequence[Utterance], extractor: WhisperFeatureExtractor) -> Tensor:
    """Log-mel features, padded to the window: utterance, mel, frame."""
    features = []
    for utterance in utterances:
        samples, _ = soundfile.read(utterance.audio_path, dtype="float32")
        features.append(extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features[0])
    return torch.from_numpy(np.stack(features))


def frame_labels(utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor, int, int]:
    """The phone and the word said at the middle of each encoder frame, and how many kinds of each there are.

    Kind 0 is silence.
    """
    phone_ids = _number([label for utterance in utterances for label, _ in utterance.phones])
    word_ids = _number([label for utterance in utterances for label, _ in utterance.words])
    middles_s = (np.arange(WINDOW_S * FRAMES_PER_SECOND) + 0.5) / FRAMES_PER_SECOND
    phones = np.stack([_spread(utterance.phones, phone_ids, middles_s) for utterance in utterances])
    words = np.stack([_spread(utterance.words, word_ids, middles_s) for utterance in utterances])
    words[phones == 0] = 0
    return torch.from_numpy(phones), torch.from_numpy(words), len(phone_ids), len(word_ids)


def _number(labels: list[str]) -> dict[str, int]:
    kinds = sorted(set(labels) - {SILENCE})
    return {SILENCE: 0} | {label: number for number, label in enumerate(kinds, start=1)}


def _spread(segments: tuple[tuple[str, float], ...], ids: dict[str, int], times_s: np.ndarray) -> np.ndarray:
    starts_s = [start_s for _, start_s in segments]
    kinds = np.array([0, *(ids[label] for label, _ in segments)])
    return kinds[np.searchsorted(starts_s, times_s, side="right")]


def _without_stress(label: str) -> str:
    """eSpeak's phone without its stress mark; every kind of pause is silence."""
    return SILENCE if label.startswith(SILENCE) or not label else label.lstrip("',%=") or SILENCE
