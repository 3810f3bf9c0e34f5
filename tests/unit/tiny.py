"""Small real things for the trainer's tests: a random Whisper, its tokenizer, a few spoken-like FLAC files."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.utils import logging as transformers_logging

from trainer.config import TrialSpec
from trainer.events import Evaluated, RunEvent, Verdict

WORDS = ("lamp", "on", "off", "oh", "zero", "timer", "fifty", "fifteen", "kitchen", "play")


@dataclass(frozen=True)
class World:
    """A teacher and two data sets."""

    model: Path
    train: Path
    dev: Path

    def spec(self, **parts: Any) -> TrialSpec:
        """Return a small trial; see ``make_spec``."""
        return make_spec(self.model, self.train, self.dev, **parts)


@cache
def make_world() -> World:
    """Build them once per test process, in half a second."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    folder = Path(_keep(tempfile.TemporaryDirectory(prefix="distune-tiny-")).name)
    return World(
        model=make_model(folder / "model"),
        train=make_corpus(folder / "train", first_speaker=1, speakers=3),
        dev=make_corpus(folder / "dev", first_speaker=50, speakers=2, utterances=4),
    )


def make_model(folder: Path, *, seed: int = 0, words: tuple[str, ...] = WORDS, layers: int = 2, mels: int = 20) -> Path:
    """Save a random Whisper with a 1-second window and a byte-level BPE in which every word is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [f" {word}" for word in words] * 5,
        trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False),
    )
    vocab, merges = bpe.get_vocab(), _merges(bpe)
    tokenizer = WhisperTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    end, start, plain = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"])
    special: dict[str, Any] = {
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=mels, max_source_positions=50,
        max_target_positions=16, begin_suppress_tokens=None, suppress_tokens=None, **special,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, no_timestamps_token_id=plain)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=1).save_pretrained(folder)
    return folder


def make_corpus(folder: Path, *, first_speaker: int = 1, speakers: int = 2, utterances: int = 6) -> Path:
    """Write noise of 0.5 to 1 s whose pitch follows the words: enough to be learnt a little."""
    rng = np.random.default_rng(first_speaker)
    for speaker in range(first_speaker, first_speaker + speakers):
        chapter = folder / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for index in range(utterances):
            chosen = rng.integers(len(WORDS), size=rng.integers(1, 4))
            length = int(16_000 * rng.uniform(0.5, 1.0))
            tones = [np.sin(np.arange(length // len(chosen)) * 0.05 * (2 + word)) for word in chosen]
            samples = 0.3 * np.concatenate(tones) + 0.01 * rng.standard_normal(sum(map(len, tones)))
            name = f"{speaker}-1-{index:04d}"
            soundfile.write(chapter / f"{name}.flac", samples, 16_000)
            lines.append(f"{name} {' '.join(WORDS[word] for word in chosen).upper()}")
        (chapter / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


def make_spec(model: Path, train: Path, dev: Path, **parts: Any) -> TrialSpec:
    """Return a trial of 24 examples; ``parts`` replace whole sections, keys within ``optim`` and so on add to them."""
    content: dict[str, Any] = {
        "data": {"train": str(train), "dev": str(dev), "min_duration_s": 0.1},
        "teacher": {"model": str(model)},
        "student": {"encoder": {"keep": 1, "frozen": True}, "decoder": {"keep": 1}, "dropout": 0.1},
        "optim": {"batch_size": 4, "examples": 24, "lr": 1e-3},
        "evaluation": {"count": 3, "batch_size": 4, "bootstrap_samples": 50},
        "runtime": {"device": "cpu", "precision": "fp32"},
        "loss": {"kl_weight": 1.0},
    }
    for name, part in parts.items():
        content[name] = {**content[name], **part} if isinstance(part, dict) and name in content else part
    return TrialSpec.model_validate(content)


@dataclass
class MemoryCheckpoints:
    """Checkpoints in a list."""

    saved: list[tuple[int, bytes]] = field(default_factory=list)

    def save(self, examples: int, blob: bytes) -> None:
        self.saved.append((examples, blob))

    def load_latest(self) -> bytes | None:
        return self.saved[-1][1] if self.saved else None


@dataclass
class FolderLog:
    """A run folder whose JSON files are kept in memory."""

    folder: Path
    files: dict[str, Any] = field(default_factory=dict)

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        self.files[name] = content


@dataclass
class Listener:
    """Collects events; gives ``verdict`` at the n-th call of its kind (``None`` counts the calls without event)."""

    verdict: Verdict = "go_on"
    at_call: int = -1
    at_evaluation: int = -1
    events: list[RunEvent] = field(default_factory=list)
    calls: int = 0

    def __call__(self, event: RunEvent | None) -> Verdict:
        self.calls += 1
        if event is not None:
            self.events.append(event)
        is_evaluation = isinstance(event, Evaluated) and len(self.evaluations()) == self.at_evaluation
        return self.verdict if self.calls == self.at_call or is_evaluation else "go_on"

    def evaluations(self) -> list[Evaluated]:
        return [event for event in self.events if isinstance(event, Evaluated)]


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


_kept: list[object] = []


def _keep(folder: "tempfile.TemporaryDirectory[str]") -> "tempfile.TemporaryDirectory[str]":
    """Hold on to a folder until the process ends, which deletes it."""
    _kept.append(folder)
    return folder
